-- The era in which this is, and where logs begin that this Redis does not have; nothing where the caller has to look first what
-- it is now. Where another has looked since the caller did, what that has found counts.
local function find_era()
  local info = redis.call('INFO', 'replication')
  local history = string.match(info, 'master_replid:(%x+)')
  -- Each shard has a history of its own, of which nobody keeps a table.
  if not TOGETHER then return string.sub(history, 1, 16), tonumber(A[16]) end
  local here = redis.call('HMGET', A[17], 'birth', 'history', 'era', 'base')
  return here[1] == A[15] and here[2] == history and here[3], tonumber(here[4] or 0)
end

-- A log that comes into another era may have given out more than it knows of: it goes on beyond that, and says so.
local function enter(S, log, era, base)
  if S.era == era then return end
  local from, to = S.head + 1, nil
  if S.era then
    -- There may have been an era between, of which what it gave this log was taken away again: that began so far behind the same
    -- head.
    to = math.max(S.head + BEYOND, base)
  elseif S.head == 0 then
    to = base
  end
  -- Shards have no such mark; and one that was none at the beginning may have had this log, and have come back without it.
  if not TOGETHER and to and (S.era or not string.find(A[17], era, 1, true)) then to = math.max(to, math.floor(NOW)) end
  if S.era then S.at = NOW end
  S.era = era
  if not to or to < from then return end
  S.head = to
  gone(S, from, to, LOST)
  everybody_receives(S, from, to)
  release(S, log)
end
