-- A read that brings the view of who reads: 23 the view, 24 the user.
local S = load(K[3])
take_view(S, K[4], A[23], A[24])
local moved, unknown = save(K[3], S, A[24])
