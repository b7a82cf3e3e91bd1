"""What is measured of a run: scores of its texts, likelihoods, what its decoder reads, all kept in the run folder."""
