-- All entries up to `to` go.
local function cut(S, log, to)
  local k = 1
  while k <= blocks(S) and last_of(S, k) <= to do
    local _, n, b = block(S, k)
    S.n, S.b, k = S.n - n, S.b - b, k + 1
  end
  S.bl = string.sub(S.bl, (k - 1) * RECORD_BYTES + 1)
  if S.bl ~= '' and block(S, 1) <= to then
    local first, n, b, expires = block(S, 1)
    each(log, first, to, function(_, entry)
      n, b, S.n, S.b = n - 1, b - bytes_of(entry), S.n - 1, S.b - bytes_of(entry)
    end)
    put_block(S, 1, to + 1, n, b, expires)
  end
  if S.n == 0 then
    redis.call('DEL', log)
    S.exp = 0
  else
    redis.call('XTRIM', log, 'MINID', id(to + 1))
  end
end

local function forget_keys(S, gone)
  local kept = {}
  for _, key in ipairs(S.keys) do
    if not gone(key) then kept[#kept + 1] = key end
  end
  S.keys = kept
end

-- `at_once`: also what servers may have yet to report that they hold (`awaits`).
local function release(S, log, at_once)
  if not at_once and awaits(S) then return end
  local low = through(S)
  local held = hold(S)
  if held then low = math.min(low, held) end
  if low <= S.rel then return end
  if S.n > 0 then cut(S, log, low) end
  S.rel = low
  forget_keys(S, function(key) return key[2] <= low end)
end
