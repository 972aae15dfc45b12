"""What a plan costs on a cluster."""
