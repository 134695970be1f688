-- What the sessions of each node hold. Of a node that has begun before the list of those that live was asked for, and
-- is not on it, nobody is here any more; nor of one that has not said it again in time since this log has come into
-- another era, before which it may have said otherwise.

local function look(S)
  local since = S.at and NOW > S.at + SAY_AGAIN
  for node, view in pairs(S.views) do
    local is_dead = not LIVE[node] and tonumber(string.match(node, '^%d+')) <= ASKED
    if is_dead or since and view.e ~= S.era then S.views[node] = nil end
  end
end

local function hold(S)
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

-- Whether a server that lives has not yet reported what its sessions hold since this log came into its epoch. For so long nothing
-- is trimmed because all cursors have received it: a session of that server may have yet to read it.
local function awaits(S)
  if not S.at or NOW < S.at or NOW > S.at + SAY_AGAIN then return false end
  for node in pairs(LIVE) do
    local view = S.views[node]
    if not view or view.e ~= S.era then return true end
  end
  return false
end
