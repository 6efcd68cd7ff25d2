"""Job files for a cluster's scheduler, which places the steps of a run; training and generation stay as they are."""
