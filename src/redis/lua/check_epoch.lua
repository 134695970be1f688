-- The failover epoch. Each step compares the epoch that its caller has adopted with the one that stands here, in the script that
-- reads and writes. Where they differ it does nothing, and the caller adopts the epoch first (cluster/redis/lease.rs).
-- Gives the name of the epoch, the sequence behind which logs begin that this Redis does not have, and the epochs in which
-- a server appended that did not know of later ones.
local function find_epoch()
  local history = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
  -- In a Cluster a step can read one slot only: the epoch is the replication history of the shard, and stands in each log.
  if not TOGETHER then return string.sub(history, 1, 16), tonumber(A[16]), '' end
  local here = redis.call('HMGET', A[17], 'birth', 'history', 'era', 'base', 'steps', 'suspect')
  if not here[1] or here[1] .. '/' .. (here[3] or '') ~= A[15] or here[2] ~= history then return end
  -- The same epoch with fewer appends than the caller has seen: the data has gone back.
  if tonumber(here[5] or 0) < tonumber(A[16]) then return end
  return here[3], tonumber(here[4] or 0), here[6] or ''
end

-- When the epoch that the caller has adopted began, in ms.
local BEGAN = tonumber(string.match(A[15], '%d+$')) or 0

local ERA, BASE, SUSPECT = find_epoch()
if not ERA then return 'era' end

local function is_suspect(era) return string.find(',' .. SUSPECT .. ',', ',' .. era .. ',', 1, true) end

-- Each log has a name of its own in an epoch: the epoch, and when the log began or came into it. So one that was deleted and began
-- anew is another one. Gives the part that all logs of an epoch share, and a new name.
local function shared(era) return string.match(era, '^[^:]*') end
local function new_era() return ERA .. ':' .. int(NOW * 1000) end

-- Whether sessions that know this log by the name `known` have read another one, that is no longer there.
local function is_apart(S, known)
  if known == '' or not S.era or known == S.era then return false end
  for _, past in ipairs(S.past or {}) do
    if past == known then return false end
  end
  return true
end

-- Whether this log has fewer changes from the caller than it has reported: an older copy was put in its place.
local function knows_less(S, reported)
  local view = S.views[NODE]
  return view and view.n < reported
end
