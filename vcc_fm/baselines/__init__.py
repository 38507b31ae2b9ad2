"""The ladder: predictors that are not neural. Each gives a log ratio to the control profile; the emitter is shared."""
