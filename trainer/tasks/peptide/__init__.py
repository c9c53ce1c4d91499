"""De-novo peptide sequencing: from the peaks of a tandem mass spectrum to the peptide that made them."""
