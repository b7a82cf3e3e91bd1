"""Many runs from one file: those that are missing are run, and those that broke go on."""
