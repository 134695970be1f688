-- Adds a gap. Parts of it that were gaps before keep their reason. Above 64 gaps the lowest are dropped.
local function add_gap(S, from, to, reason)
  local out = {}
  local function put(a, b, why)
    if a > b then return end
    local last = out[#out]
    if last and last[3] == why and last[2] + 1 == a then last[2] = b else out[#out + 1] = {a, b, why} end
  end
  for _, r in ipairs(S.gaps) do
    if from < r[1] then put(from, math.min(to, r[1] - 1), reason) end
    put(r[1], r[2], r[3])
    if from <= r[2] then from = r[2] + 1 end
  end
  put(from, to, reason)
  while #out > REASONS_MAX do table.remove(out, 1) end
  S.gaps = out
end

-- Removes one entry, and adds a gap for it.
local function remove_entry(S, log, seq, reason)
  each_entry(log, seq, seq, function(_, entry)
    local k = block_of(S, seq)
    local first, n, b, expires = block(S, k)
    set_block(S, k, first, n - 1, b - bytes_of(entry), expires)
    S.n, S.b = S.n - 1, S.b - bytes_of(entry)
    redis.call('XDEL', log, id(seq))
  end)
  remove_keys(S, function(key) return key[2] == seq end)
  add_gap(S, seq, seq, reason)
  if seq <= lowest_cursor(S) + 1 then acknowledge_for_all(S, 1, seq) end
end

-- Removes expired entries of one scan (SCAN_ENTRIES_MAX, SCAN_BYTES_MAX). If there are more, S.exp still lies in the past.
local function drop_expired(S, log)
  if not is_expired(S.exp) then return end
  local ids, removed, scanned, read, next_expiry, k = {}, {}, 0, 0, 0, 1
  while k <= blocks(S) do
    local first, n, b, expires = block(S, k)
    if is_expired(expires) and scanned < SCAN_ENTRIES_MAX and read < SCAN_BYTES_MAX then
      expires = 0
      each_entry(log, first, last_of(S, k), function(seq, entry)
        local at, bytes = tonumber(entry[2][8]), bytes_of(entry)
        scanned, read = scanned + 1, read + bytes
        if is_expired(at) then
          ids[#ids + 1] = id(seq)
          removed[id(seq)] = true
          n, b, S.n, S.b = n - 1, b - bytes, S.n - 1, S.b - bytes
        else
          expires = earlier(expires, at)
        end
      end)
      set_block(S, k, first, n, b, expires)
    end
    if n > 0 then
      next_expiry, k = earlier(next_expiry, expires), k + 1
    end
  end
  if S.n == 0 then redis.call('DEL', log) else delete_entries(log, ids) end
  S.exp = next_expiry
  remove_keys(S, function(key) return removed[id(key[2])] end)
end
