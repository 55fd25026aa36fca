"""What survives a restart: one database, in a file of this server or shared by several."""
