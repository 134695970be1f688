-- Holds the state of a log against its stream, entry by entry. Knows the packed fields of the state and nothing else of the
-- script that keeps them.
--
-- KEYS: 1 the state, 2 the stream. ARGV: 1 messages of one user at most; 2 whether the state itself says when it is due (1), as
-- it does where keys are not spread. Gives what is wrong, one sentence each, and the log as JSON ('' = there is none).

local wrong = {}
local function check(is_so, ...)
  if is_so then return end
  local words = {}
  for at = 1, select('#', ...) do words[at] = tostring((select(at, ...))) end
  if #wrong < 20 then wrong[#wrong + 1] = table.concat(words, ' ') end
end

local packed = redis.call('GET', KEYS[1])
if not packed then
  check(redis.call('XLEN', KEYS[2]) == 0, 'there are entries, and no state')
  return {wrong, ''}
end
local S = cmsgpack.unpack(packed)

-- When the first of some expires: what stands for that, against the entries' own.
local function check_expires(stands, first, whose)
  if first then check(stands > 0 and stands <= first, whose, 'expires at', first, 'and', stands, 'stands for that') end
end
local function sooner(a, b) return b > 0 and (not a or b < a) and b or a end

local entries, at_seq, bytes, first_expiry = {}, {}, 0, nil
for _, found in ipairs(redis.call('XRANGE', KEYS[2], '-', '+')) do
  local entry = {seq = tonumber(string.match(found[1], '^(%d+)-0$'))}
  for at = 1, #found[2], 2 do
    if found[2][at] == 'p' then entry.bytes = #found[2][at + 1] end
    if found[2][at] == 'e' then entry.expires = tonumber(found[2][at + 1]) end
  end
  entries[#entries + 1] = entry
  at_seq[entry.seq] = entry
  bytes = bytes + entry.bytes
  first_expiry = sooner(first_expiry, entry.expires)
end
check(S.n == #entries, 'n is', S.n, 'and there are', #entries, 'entries')
check(S.b == bytes, 'b is', S.b, 'and the entries have', bytes)
check(S.n <= tonumber(ARGV[1]), 'there are', S.n, 'entries, which is more than may be')
check_expires(S.exp, first_expiry, 'the first entry of all')
if #entries > 0 then
  check(S.rel < entries[1].seq, 'rel is', S.rel, 'and the first entry', entries[1].seq)
  check(entries[#entries].seq <= S.head, 'head is', S.head, 'and the last entry', entries[#entries].seq)
end
if ARGV[2] == '1' and S.exp > 0 then
  check(S.due > 0 and S.due <= S.exp, 'exp is', S.exp, 'and due', S.due)
end

-- Blocks.
local RECORD, RECORD_BYTES, ENTRIES_MAX, BYTES_MAX, PAYLOAD_MAX = '<dI2dI4', 22, 512, 256 * 1024, 64 * 1024 + 32
check(#S.bl % RECORD_BYTES == 0, 'blocks have', #S.bl, 'bytes')
local blocks = {}
for at = 1, #S.bl, RECORD_BYTES do
  local first, n, b, expires = struct.unpack(RECORD, S.bl, at)
  blocks[#blocks + 1] = {first = first, n = n, b = b, expires = expires}
end
local all_n, all_b, next_entry = 0, 0, 1
for k, block in ipairs(blocks) do
  local whose = 'block ' .. k .. ' of ' .. #blocks
  local following = blocks[k + 1]
  check(block.n > 0, whose, 'is empty')
  check(not following or block.first < following.first, whose, 'begins at', block.first, 'and the next does not ascend')
  check(block.n <= ENTRIES_MAX and block.b < BYTES_MAX + PAYLOAD_MAX, whose, 'is too large:', block.n, block.b)
  local n, b, first = 0, 0, nil
  while entries[next_entry] and (not following or entries[next_entry].seq < following.first) do
    local entry = entries[next_entry]
    check(entry.seq >= block.first, whose, 'begins at', block.first, 'and has', entry.seq)
    n, b, first, next_entry = n + 1, b + entry.bytes, sooner(first, entry.expires), next_entry + 1
  end
  check(n == block.n and b == block.b, whose, 'says', block.n, 'entries and', block.b, 'bytes, and has', n, b)
  check_expires(block.expires, first, whose)
  -- A block cannot say a later second than the last of 32 bits.
  check(block.expires == 0 or S.exp > 0 and math.min(S.exp, 4294967295) <= block.expires, whose, 'expires at', block.expires,
    'and exp is', S.exp)
  all_n, all_b = all_n + block.n, all_b + block.b
end
check(all_n == S.n and all_b == S.b, 'n and b are', S.n, S.b, 'and the blocks have', all_n, all_b)

-- Keys.
local seen = {}
for _, key in ipairs(S.keys) do
  local entry = at_seq[key[2]]
  check(entry, 'key', key[1], 'is at', key[2], 'which is not there')
  check(not entry or entry.expires == key[3], 'key', key[1], 'expires at', key[3], 'and its entry', entry and entry.expires)
  check(not seen[key[1]], 'key', key[1], 'is there twice')
  seen[key[1]] = true
end
check(#S.keys <= 64, 'there are', #S.keys, 'keys')

-- Cursors.
local cursors, names, low = {}, {}, nil
if S.sh then cursors[1], names[1] = S.sh, '' end
for _, device in ipairs(S.dv) do
  for _, name in ipairs(names) do check(name ~= device[1], 'device', name, 'is there twice') end
  cursors[#cursors + 1], names[#names + 1] = device[2], device[1]
end
check(#cursors > 0, 'there is no cursor')
for at, c in ipairs(cursors) do
  local whose, last = 'cursor "' .. names[at] .. '"', c.t
  check(c.t <= S.head, whose, 'is at', c.t, 'and head', S.head)
  check(#c.i <= 16, whose, 'has', #c.i, 'islands')
  for _, island in ipairs(c.i) do
    check(island[1] > last + 1, whose, 'has an island from', island[1], 'and before that all up to', last)
    check(island[1] <= island[2] and island[2] <= S.head, whose, 'has an island', island[1], island[2], 'and head is', S.head)
    last = island[2]
  end
  low = math.min(low or c.t, c.t)
end
check(S.rel <= (low or 0), 'rel is', S.rel, 'and somebody has received up to', low)

-- Gaps. What was cleared may be held, and what had its time may be there still; of all others nothing is.
local last, last_why = 0, nil
for _, gap in ipairs(S.gone) do
  check(gap[1] > last and gap[1] <= gap[2], 'a gap', gap[1], gap[2], 'behind one up to', last)
  check(gap[1] > last + 1 or gap[3] ~= last_why, 'two gaps that are one, at', gap[1])
  last, last_why = gap[2], gap[3]
  if gap[3] ~= 2 and gap[3] ~= 0 then
    for _, entry in ipairs(entries) do
      check(entry.seq < gap[1] or entry.seq > gap[2], 'entry', entry.seq, 'is in a gap', gap[1], gap[2], 'for reason', gap[3])
    end
  end
end
check(#S.gone <= 64 and last <= S.head, 'there are', #S.gone, 'gaps, the last up to', last, 'and head is', S.head)

-- The log, for who wants to know what the next append has to do.
local held = 0
for _, view in pairs(S.views) do
  if view.h >= 0 then held = held + 1 end
end
-- After a failover what everybody has received stays until all servers that live have reported, which is not known here.
if S.at then held = held + 1 end
local log = {head = S.head, era = S.era or '', held = held, entries = {}, keys = {}, cursors = {}}
for at, entry in ipairs(entries) do log.entries[at] = {entry.seq, entry.bytes, entry.expires} end
for at, key in ipairs(S.keys) do log.keys[at] = key end
for at, c in ipairs(cursors) do
  local words = {names[at], c.t}
  for _, island in ipairs(c.i) do words[#words + 1], words[#words + 2] = island[1], island[2] end
  log.cursors[at] = words
end
log.blocks = #blocks
-- An empty list would come out as an object.
for _, list in ipairs({'entries', 'keys', 'cursors'}) do
  if #log[list] == 0 then log[list] = nil end
end
return {wrong, cjson.encode(log)}
