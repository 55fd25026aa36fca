"""The service on gRPC: what callers say and are told.

`server.py` puts it together; each service has a servicer here, which translates and nothing else.
Rooms, in the order in which a call passes them: `transport` (who calls, and within which bounds),
`requests` (what is wanted), `explanations` and `federation` (autoencoders here and elsewhere), and
`responses` (what is told).
"""
