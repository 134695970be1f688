-- Holds and attached devices, as servers have reported them.

-- Drops stale reports:
-- - of a server that joined before the caller's list of live servers was made, and is not on it
-- - made before this log entered its epoch, and not repeated in time: they may no longer be true
local function drop_stale_reports(S)
  local is_over = S.entered and NOW > S.entered + REPORT_TIMEOUT_MS
  for server, report in pairs(S.reports) do
    local is_dead = not LIVE_SERVERS[server] and tonumber(string.match(server, '^%d+')) <= LISTED_AT
    if is_dead or is_over and report.log_name ~= S.name then S.reports[server] = nil end
  end
end

local function lowest_hold(S)
  local low
  for _, report in pairs(S.reports) do
    if report.hold >= 0 then low = math.min(low or report.hold, report.hold) end
  end
  return low
end

local function is_attached(S, device)
  for _, report in pairs(S.reports) do
    for _, name in ipairs(report.devices) do
      if name == device then return true end
    end
  end
  return false
end

-- Tells whether a live server has yet to report its holds since this log entered its epoch. Until then no acknowledged entry
-- is trimmed: a session of that server may have yet to read it.
local function awaits_reports(S)
  if not S.entered or NOW < S.entered or NOW > S.entered + REPORT_TIMEOUT_MS then return false end
  for server in pairs(LIVE_SERVERS) do
    local report = S.reports[server]
    if not report or report.log_name ~= S.name then return true end
  end
  return false
end
