"""The command-line programs: arguments, files, printing."""
