-- A read of who has nothing to say.
local S = load(K[3])
look(S)
local moved, unknown = -1, 0
