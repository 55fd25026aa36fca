"""What is the same for every call, whatever it asks: who calls, how much, ids, log lines, metrics,
and the status that it ends with."""
