"""What every job stands on: errors of one line, the command line, the terminal, files, locks, processes, the device."""
