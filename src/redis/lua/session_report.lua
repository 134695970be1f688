-- What a server says of a user, as JSON: n its count of changes, h what it holds (-1 = nothing), d the devices that are here, seen
-- when the user was (ms, 0 = not), left devices that have gone, each with how long ago (ms), had what was received: each device,
-- from, to.
-- e is the name by which its sessions know the log ('' = not at all), m the highest sequence that they have seen, w the last of its
-- changes that was written down. The log comes into the current epoch first. True if that has moved its head.
local function take_view(S, log, text, user)
  local view, head = cjson.decode(text), S.head
  enter(S, log, user)
  rejoin(S, log, view.e, view.m, view.w)
  local known = S.views[NODE]
  local newer = not known or known.n < view.n
  if newer then S.views[NODE] = {n = view.n, h = view.h, d = view.d, e = S.era} end
  if view.seen > S.seen then S.seen = view.seen end
  for _, left in ipairs(view.left) do
    local c = cursor(S, left[1])
    if c and newer then c.s = math.max(c.s, NOW - left[2]) end
  end
  for _, had in ipairs(view.had) do
    local c = cursor(S, had[1])
    -- What is said a second time may be about a cursor that has begun anew since.
    if c and newer then insert(c, had[2], math.min(had[3], S.head)) end
  end
  look(S)
  release(S, log)
  return S.head ~= head
end
