local function fits(S, bytes) return S.n < MESSAGES and S.b + bytes <= BYTES end

-- Returns up to which sequence entries must be evicted for a message of this size.
local function evict_through(S, log, bytes)
  local n, b, to = S.n, S.b, nil
  local function is_enough(some, theirs) return n - some < MESSAGES and b - theirs + bytes <= BYTES end
  for k = 1, blocks(S) do
    local first, all, theirs = block(S, k)
    if is_enough(all, theirs) then
      each(log, first, last_of(S, k), function(seq, entry)
        n, b, to = n - 1, b - bytes_of(entry), seq
        return not is_enough(0, 0)
      end)
      return to
    end
    n, b = n - all, b - theirs
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
  -- Entries that all cursors have received neither reject nor evict anything, even if a server has yet to report its holds.
  trim(S, log, true)
  if not DROP or fits(S, bytes) then return 0 end
  local to = evict_through(S, log, bytes)
  if not to then return 0 end
  local dropped = count(S, log, 1, to)
  for _, r in ipairs(ranges(received_by_all(S))) do dropped = dropped - count(S, log, r[1], math.min(r[2], to)) end
  local first = seq_of(redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1])
  local from = math.min(first, lowest_cursor(S) + 1)
  trim_through(S, log, to)
  forget_keys(S, function(key) return key[2] <= to end)
  add_gap(S, from, to, QUOTA)
  mark_received_by_all(S, 1, to)
  trim(S, log)
  return dropped
end
