-- Entries of the stream. Fields in this order: n fingerprint of the namespace, u owner, p payload, e expiry in seconds (0 =
-- never).

-- Largest sequence: the largest integer of Lua.
local SEQ_MAX = 9007199254740991

local function bytes_of(entry) return #entry[2][6] end
local function seq_of(entry) return tonumber(string.match(entry[1], '^%d+')) end

-- Calls `visit` with sequence and entry for each existing one from..to.
local function each_entry(log, from, to, visit)
  local amount = 4
  while true do
    local found = redis.call('XRANGE', log, id(from), id(to), 'COUNT', amount)
    for _, entry in ipairs(found) do
      local seq = seq_of(entry)
      if visit(seq, entry) == false then return end
      from = seq + 1
    end
    if #found < amount then return end
    amount = math.min(amount * 4, 128)
  end
end

local function delete_entries(log, ids)
  for at = 1, #ids, 500 do redis.call('XDEL', log, unpack(ids, at, math.min(at + 499, #ids))) end
end
