-- A read of who has nothing to say. 23 the epoch in which the sessions of the caller know the log ('' = there are none).
local S = load(K[3])
look(S)
if is_apart(S, A[23]) then return 'apart' end
local moved, unknown = -1, 0
