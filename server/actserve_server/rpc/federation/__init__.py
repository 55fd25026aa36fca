"""What other servers of ours do for this one."""
