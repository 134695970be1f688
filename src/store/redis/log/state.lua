local S, new = load(K[3])
look(S)
read_blocks = {}
local both = common(S)
local n, b = waiting(S, K[4], both)
local islands = {}
for _, r in ipairs(both.i) do
  islands[#islands + 1] = r[1]
  islands[#islands + 1] = r[2]
end
local devices = {}
for _, d in ipairs(S.dv) do devices[#devices + 1] = {d[1], (waiting(S, K[4], d[2])), math.floor(d[2].s)} end
-- The last: what is past is among what was counted.
local is_late = is_past(S.exp) and 1 or 0
return {new and 0 or 1, S.head, both.t, islands, n, b, math.floor(S.seen), devices, is_late}
