-- One step on the logs of users: the whole of it, or nothing. What each step may do is said in the store's contract
-- (src/store/mod.rs); this is the same as src/store/{cursors,gone,log,room}.rs, where Redis keeps the log.
--
-- A log is two keys of one slot: the state (packed: head, cursors, gaps, tallies) and a stream with an entry for each
-- message that is still there, whose id is its sequence.
--
-- ARGV: 1 the step, 2 this node, 3 nodes that live (a,b,c), 4 when those were asked for (ms), 5 milliseconds by which the
-- clock is ahead (tests), 6 messages and 7 bytes of one user, 8 age in ms (0 = none), 9 overflow (drop or reject),
-- 10 device age in ms (0 = none), 11 devices, 12 window of ids in ms, 13 fingerprint of the namespace,
-- 14 the channel for wake-ups, 15 the epoch that the caller has adopted, 16 how many steps have appended in it as far as the
-- caller has seen, or where keys are spread, behind which sequence logs begin that are not there, 17 the key of the epoch, or where
-- keys are spread, the histories of the shards there were at the beginning; what belongs to the step begins at 18.
-- KEYS: 1 who is known, 2 when something is due; the step's from 3. Where keys are spread over slots the first three are the
-- same, and the caller writes down who is known and what is due, from the answers.

local A, K = ARGV, KEYS
local NODE, ASKED, TOGETHER = A[2], tonumber(A[4]), K[1] ~= K[3]
local MESSAGES, BYTES, AGE, DROP = tonumber(A[6]), tonumber(A[7]), tonumber(A[8]), A[9] == 'drop'
local DEVICE_AGE, DEVICES, WINDOW = tonumber(A[10]), tonumber(A[11]), tonumber(A[12])
local ISLANDS_MAX, REASONS_MAX, KEYS_MAX = 16, 64, 64

-- What one step reads of a log, but for what it gives back: then it ends, and the next goes on.
local LOOKED_MAX, LOOKED_BYTES_MAX = 1024, 1024 * 1024
local QUOTA, COLLAPSED, CLEARED, LOST = 1, 3, 2, 5

-- A log that may have given out more than it knows of goes on so far behind its head, at least.
local BEYOND = 1000000

-- Epochs that a log remembers to have come from.
local PAST_MAX = 16

-- How long servers have to say again who is here, in ms.
local SAY_AGAIN = 15000

local LIVE = {}
for node in string.gmatch(A[3], '[^,]+') do LIVE[node] = true end
LIVE[NODE] = true

local time = redis.call('TIME')
local NOW = time[1] * 1000 + time[2] / 1000 + tonumber(A[5])
local NOW_S = math.floor(NOW / 1000)

local function int(n) return string.format('%.0f', n) end
local function id(seq) return int(seq) .. '-0' end
local function is_past(at) return at > 0 and at <= NOW_S end
local function earlier(a, b)
  if a == 0 then return b elseif b == 0 then return a else return math.min(a, b) end
end
