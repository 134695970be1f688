-- Returns when the log must be expired even if nothing else happens, in seconds; 0 = never.
local function due(S)
  local at = S.exp
  -- What waits for reports of servers is trimmed then at the latest.
  if S.n > 0 and awaits_reports(S) and lowest_cursor(S) > S.rel then
    at = earlier(at, math.floor((S.at + REPORT_TIMEOUT_MS) / 1000) + 1)
  end
  -- A device that is its user's only cursor is never dropped. It only needs a look while it is attached.
  local only = #S.dv == 1 and not S.sh and not is_attached(S, S.dv[1][1])
  if DEVICE_AGE > 0 and #S.dv > 0 and not only then
    local first
    local function consider(name, c)
      local when = c.s + (is_attached(S, name) and DEVICE_AGE / 2 or DEVICE_AGE)
      first = math.min(first or when, when)
    end
    for _, d in ipairs(S.dv) do consider(d[1], d[2]) end
    if S.sh then consider('', S.sh) end
    at = earlier(at, math.max(math.floor(first / 1000) + 1, NOW_SECONDS))
  end
  return at
end

-- In a Redis Cluster the caller writes the indexes, and then confirms that (`listed`). Until then each step asks for it. A
-- later expiry is not written: the pass at the earlier one finds it. Returns the next expiry (-1 = it is in the index), and 1
-- if the user is not in the index.
local function index_updates(S, at)
  local is_earlier = at > 0 and ((S.due or 0) == 0 or at < S.due)
  return is_earlier and at or -1, S.listed and 0 or 1
end

local function save(key, S, user)
  local at = due(S)
  if SINGLE_REDIS then
    if not S.listed then redis.call('ZADD', K[1], 0, user) end
    if at ~= (S.due or 0) then
      if at > 0 then redis.call('ZADD', K[2], at, user) else redis.call('ZREM', K[2], user) end
    end
    S.listed, S.due = true, at
  end
  redis.call('SET', key, cmsgpack.pack(S))
  return index_updates(S, at)
end
