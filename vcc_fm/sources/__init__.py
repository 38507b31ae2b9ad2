"""What users have, checked: h5ad files become raw counts on gene symbols, FASTA files become protein sequences."""
