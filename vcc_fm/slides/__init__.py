"""Expression from images of tissue: what a recipe on slides trains, predicts and scores."""
