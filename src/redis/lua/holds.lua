-- Drops stale reports: those of a server that began before the caller's list of live servers and is not on it; and those that
-- were not repeated in time since this log entered another epoch, for which they may no longer be true.

local function drop_stale_reports(S)
  local since = S.at and NOW > S.at + REPORT_TIMEOUT_MS
  for node, view in pairs(S.views) do
    local is_dead = not LIVE[node] and tonumber(string.match(node, '^%d+')) <= ASKED
    if is_dead or since and view.e ~= S.era then S.views[node] = nil end
  end
end

local function lowest_hold(S)
  local low
  for _, view in pairs(S.views) do
    if view.h >= 0 then low = math.min(low or view.h, view.h) end
  end
  return low
end

local function is_attached(S, device)
  for _, view in pairs(S.views) do
    for _, name in ipairs(view.d) do
      if name == device then return true end
    end
  end
  return false
end

-- Tells whether a live server has not yet reported its holds since this log entered its epoch. Until then nothing is trimmed
-- because all cursors have received it: a session of that server may have yet to read it.
local function awaits_reports(S)
  if not S.at or NOW < S.at or NOW > S.at + REPORT_TIMEOUT_MS then return false end
  for node in pairs(LIVE) do
    local view = S.views[node]
    if not view or view.e ~= S.era then return true end
  end
  return false
end
