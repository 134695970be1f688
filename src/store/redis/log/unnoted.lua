-- A read of who has nothing to say. 23 the epoch in which the sessions of the caller know the log ('' = there are none).
local S = load(K[3])
look(S)
-- A log that has come into another epoch does not know what they hold.
if A[23] ~= '' and A[23] ~= S.era then return 'apart' end
local moved, unknown = -1, 0
