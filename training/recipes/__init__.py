"""Settings for `vitrail train`; each file is headed by a command, what it cost and what it reached."""
