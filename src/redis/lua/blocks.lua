-- Blocks: of some entries that follow each other, how many there are, their bytes, and when the first of them expires or
-- something earlier (0 = never). An entry cannot be measured without being read whole, so this is what tells how much there
-- is; at the ends of a range a block is read, which is no more than so many entries, or bytes and one entry.
-- A record: first sequence (or less), entries, bytes, seconds.
local BLOCK_MAX, BLOCK_BYTES_MAX = 512, 256 * 1024
local RECORD, RECORD_BYTES = '<dI2dI4', 22

-- What is said of later seconds than this is this, which is earlier: cut off they would be long past.
local SECONDS_MAX = 4294967295

local function blocks(S) return #S.bl / RECORD_BYTES end
local function block(S, k) return struct.unpack(RECORD, S.bl, (k - 1) * RECORD_BYTES + 1) end
local function last_of(S, k) return k < blocks(S) and block(S, k + 1) - 1 or S.head end

local function put_block(S, k, first, n, b, expires)
  local record = n > 0 and struct.pack(RECORD, first, n, b, math.min(expires, SECONDS_MAX)) or ''
  S.bl = string.sub(S.bl, 1, (k - 1) * RECORD_BYTES) .. record .. string.sub(S.bl, k * RECORD_BYTES + 1)
end

-- Where a sequence is or would be; 0 = before the first.
local function block_of(S, seq)
  local low, high = 0, blocks(S)
  while low < high do
    local middle = math.ceil((low + high) / 2)
    if block(S, middle) <= seq then low = middle else high = middle - 1 end
  end
  return low
end

-- The last entry of all has come.
local function add(S, seq, bytes, expires)
  S.n, S.b, S.exp = S.n + 1, S.b + bytes, earlier(S.exp, expires)
  local k = blocks(S)
  if k > 0 then
    local first, n, b, before = block(S, k)
    if n < BLOCK_MAX and b < BLOCK_BYTES_MAX then
      return put_block(S, k, first, n + 1, b + bytes, earlier(before, expires))
    end
  end
  put_block(S, k + 1, seq, 1, bytes, expires)
end

-- Sequences and sizes of a block's entries, remembered: steps that change nothing ask for several ranges of one block.
local read_blocks
local function sizes(S, log, k, first)
  local known = read_blocks[k]
  if known then return known end
  known = {}
  each(log, first, last_of(S, k), function(seq, entry) known[#known + 1] = {seq, bytes_of(entry)} end)
  read_blocks[k] = known
  return known
end

-- How many entries from..to there are, and their bytes. Of a block that is not wholly in the range, a step that changes something
-- reads only the part that is: one that makes room for each of many messages reads the few entries that go.
local function count(S, log, from, to)
  local n, b = 0, 0
  if from > to then return n, b end
  for k = math.max(block_of(S, from), 1), blocks(S) do
    local first, all, bytes = block(S, k)
    local last = last_of(S, k)
    if first > to then break end
    if from <= first and last <= to then
      n, b = n + all, b + bytes
    elseif read_blocks then
      for _, one in ipairs(sizes(S, log, k, first)) do
        if one[1] >= from and one[1] <= to then n, b = n + 1, b + one[2] end
      end
    else
      each(log, math.max(from, first), math.min(last, to), function(_, entry) n, b = n + 1, b + bytes_of(entry) end)
    end
  end
  return n, b
end

-- How many entries are not in `c`, and their bytes; what is past and has not gone yet among them.
local function waiting(S, log, c)
  local n, b = S.n, S.b
  for _, r in ipairs(ranges(c)) do
    local had, bytes = count(S, log, r[1], math.min(r[2], S.head))
    n, b = n - had, b - bytes
  end
  return n, b
end
