-- Removes all entries up to `to`.
local function trim_through(S, log, to)
  local k = 1
  while k <= blocks(S) and last_of(S, k) <= to do
    local _, n, b = block(S, k)
    S.n, S.b, k = S.n - n, S.b - b, k + 1
  end
  S.bl = string.sub(S.bl, (k - 1) * RECORD_BYTES + 1)
  if S.bl ~= '' and block(S, 1) <= to then
    local first, n, b, expires = block(S, 1)
    each_entry(log, first, to, function(_, entry)
      n, b, S.n, S.b = n - 1, b - bytes_of(entry), S.n - 1, S.b - bytes_of(entry)
    end)
    set_block(S, 1, to + 1, n, b, expires)
  end
  if S.n == 0 then
    redis.call('DEL', log)
    S.exp = 0
  else
    redis.call('XTRIM', log, 'MINID', id(to + 1))
  end
end

-- Removes collapse keys.
local function remove_keys(S, matches)
  local remaining = {}
  for _, key in ipairs(S.keys) do
    if not matches(key) then remaining[#remaining + 1] = key end
  end
  S.keys = remaining
end

-- Removes entries that every cursor has acknowledged and no session holds. `at_once`: without waiting for reports of servers
-- (`awaits_reports`).
local function trim(S, log, at_once)
  if not at_once and awaits_reports(S) then return end
  local low = lowest_cursor(S)
  local hold = lowest_hold(S)
  if hold then low = math.min(low, hold) end
  if low <= S.trimmed then return end
  if S.n > 0 then trim_through(S, log, low) end
  S.trimmed = low
  remove_keys(S, function(key) return key[2] <= low end)
end
