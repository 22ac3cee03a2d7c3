"""Files and folders, on this machine and in buckets: paths, outputs that appear complete or not at all, copies, locks, disk space."""
