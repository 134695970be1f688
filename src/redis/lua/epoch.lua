-- Of a user this much gets new sequences at most, the newest: a step that moves more would keep others waiting. What is older was
-- there before the data went back.
local MOVED_MAX, MOVED_BYTES_MAX = 10000, 8 * 1024 * 1024

-- Gives what is pending new sequences, above `base`. Other sessions may receive it a second time. It happens once for a log,
-- after its data went back and one server noticed that later than another.
local function renumber(S, log, base)
  local k, n, b = blocks(S), 0, 0
  local from, last = S.head + 1, S.head
  while k > 0 do
    local first, entries, bytes = block(S, k)
    if n > 0 and (n + entries > MOVED_MAX or b + bytes > MOVED_BYTES_MAX) then break end
    from, n, b, k = first, n + entries, b + bytes, k - 1
  end
  if k == 0 then from = 1 end
  S.low = base
  S.bl = string.sub(S.bl, 1, k * RECORD_BYTES)
  S.head, S.n, S.b = base, S.n - n, S.b - b
  local all, received, keys, ids = cursors(S), {}, {}, {}
  for _, key in ipairs(S.keys) do keys[key[2]] = key end
  each(log, from, last, function(seq, entry)
    ids[#ids + 1] = id(seq)
    if everybody_has(S, seq) then return end
    S.head = S.head + 1
    redis.call('XADD', log, id(S.head), unpack(entry[2]))
    add(S, S.head, bytes_of(entry), tonumber(entry[2][8]))
    for _, c in ipairs(all) do
      if has(c, seq) then received[#received + 1] = {c, S.head} end
    end
    if keys[seq] then keys[seq][2] = S.head end
  end)
  everybody_receives(S, from, base)
  for _, one in ipairs(received) do insert(one[1], one[2], one[2]) end
  gone(S, from, base, LOST)
  forget_keys(S, function(key) return key[2] >= from and key[2] <= base end)
  delete(log, ids)
  if S.n == 0 then
    redis.call('DEL', log)
    S.exp = 0
  end
  release(S, log)
end

-- Gives a sequence above `to`, and on a single Redis above those that logs were given in this way before. The time of day alone
-- is not: a log may have had more entries since than milliseconds have passed.
local function above_lost(to)
  if not TOGETHER then return to end
  to = math.max(to, tonumber(redis.call('HGET', A[17], 'lost') or 0) + BEYOND)
  redis.call('HSET', A[17], 'lost', int(to))
  return to
end

-- Brings a log into the current epoch. It may have given out more than it knows of: it goes on beyond that, and its clients get
-- a gap with the reason `lost`.
local function enter(S, log, user)
  mend(S, log)
  local era = S.era
  if era and shared(era) == ERA then return end
  -- The state is gone, and only that: there was one for an entry, and for a user who is written down.
  local is_lost = not era and (S.head > 0 or TOGETHER and redis.call('ZSCORE', K[1], user))
  local from, to = S.head + 1, BASE
  -- Another epoch may lie between, whose sequences for this log are lost: it began as far behind the same head.
  if era or is_lost then to = math.max(S.head + BEYOND, BASE) end
  -- A shard has no base. One that joined later may have had this log, and have come back without it.
  if not TOGETHER and (era or not string.find(A[17], ERA, 1, true)) then to = math.max(to, math.floor(NOW)) end
  -- It may have come as far as this in its epoch.
  if is_lost then to = above_lost(math.max(to, BASE + BEYOND, math.floor(NOW))) end
  -- One that is not there may have been lost where the epoch is young.
  if era or is_lost or BASE > 0 and NOW < BEGAN + SAY_AGAIN then S.at = NOW end
  if era then account_for(S, era) else S.low = to end
  S.era = new_era()
  if era and is_suspect(shared(era)) then return renumber(S, log, to) end
  if to < from then return end
  S.head = to
  gone(S, from, to, LOST)
  everybody_receives(S, from, to)
  release(S, log)
end

-- Sessions of the caller know the log `known` under this name, up to `seen`, and have reported `reported` changes. Where that is
-- another log, or this one went back to an older copy, what is pending may lie below their cursors.
local function rejoin(S, log, known, seen, reported)
  local went_back = known ~= '' and seen > S.head or known == S.era and knows_less(S, reported)
  if not went_back and not is_apart(S, known) then return end
  account_for(S, known)
  S.at = NOW
  if went_back then
    if known ~= S.era then account_for(S, S.era) end
    S.era = new_era()
  elseif seen <= (S.low or 0) then
    return
  end
  renumber(S, log, above_lost(math.max(S.head + BEYOND, seen + BEYOND, BASE, math.floor(NOW))))
end
