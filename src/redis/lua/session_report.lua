-- Applies a server's report on a user, as JSON: n number of its last change, h its hold (-1 = none), d attached devices, seen
-- when the user was seen (ms, 0 = never), left devices that left, each with how long ago (ms), had acknowledged ranges:
-- device, from, to. e is the name by which its sessions know the log ('' = not at all), m the highest sequence that they have
-- seen, w the last change that was stored. The log enters the current epoch first. Returns true if that has moved its head.
local function apply_report(S, log, text, user)
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
    -- A repeated report may be about a cursor that was created again since.
    if c and newer then insert(c, had[2], math.min(had[3], S.head)) end
  end
  drop_stale_reports(S)
  trim(S, log)
  return S.head ~= head
end
