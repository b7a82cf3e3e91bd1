"""What training of codecs and scorers shares."""
