local function fits(S, bytes) return S.n < QUOTA_ENTRIES and S.b + bytes <= QUOTA_BYTES end

-- Returns the sequence up to which entries must be evicted for a message of this size.
local function evict_through(S, log, bytes)
  local n, b, to = S.n, S.b, nil
  local function is_enough(evicted, evicted_bytes)
    return n - evicted < QUOTA_ENTRIES and b - evicted_bytes + bytes <= QUOTA_BYTES
  end
  for k = 1, blocks(S) do
    local first, all, all_bytes = block(S, k)
    if is_enough(all, all_bytes) then
      each_entry(log, first, last_of(S, k), function(seq, entry)
        n, b, to = n - 1, b - bytes_of(entry), seq
        return not is_enough(0, 0)
      end)
      return to
    end
    n, b = n - all, b - all_bytes
  end
  local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  return last and seq_of(last)
end

-- Frees quota for a message. Returns how many pending entries were evicted.
local function evict(S, log, bytes)
  for _ = 1, 8 do
    if fits(S, bytes) then return 0 end
    drop_expired(S, log)
  end
  -- Entries that all cursors have acknowledged neither reject nor evict anything, even if a server has yet to report its
  -- holds.
  trim(S, log, true)
  if not DROP_OLDEST or fits(S, bytes) then return 0 end
  local to = evict_through(S, log, bytes)
  if not to then return 0 end
  local dropped = count_range(S, log, 1, to)
  for _, r in ipairs(ranges(acknowledged_by_all(S))) do dropped = dropped - count_range(S, log, r[1], math.min(r[2], to)) end
  local first = seq_of(redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1])
  local from = math.min(first, lowest_cursor(S) + 1)
  trim_through(S, log, to)
  remove_keys(S, function(key) return key[2] <= to end)
  add_gap(S, from, to, REASON_QUOTA)
  acknowledge_for_all(S, 1, to)
  trim(S, log)
  return dropped
end
