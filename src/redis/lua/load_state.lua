-- The state of a log, packed. Fields:
--   head       last sequence
--   trimmed    entries up to this sequence are removed
--   n, b       entries of the stream, and their bytes
--   bl         blocks (blocks.lua)
--   exp        when the first entry expires, or earlier, in seconds (0 = never)
--   keys       collapse keys: key, sequence, when it expires
--   gaps       gaps: from, to, reason
--   sh, dv     cursor of clients without a device (or none); cursors of devices: name, cursor
--              A cursor: t and i (cursors.lua), s when it was last used (ms)
--   seen       when the user was seen (ms, 0 = never)
--   reports    last report of each server (session_report.lua): changes, hold, devices, log_name
--   name       name of the log (check_epoch.lua); old_names: its earlier ones
--   start      the log began behind this sequence, or was renumbered to behind it
--   entered    when the log entered its epoch, where live servers must report again (ms)
--   indexed    the user is in the user index
--   due        the user's time in the expiry index, in seconds (0 = none)

-- Tells whether an error is about a stored value. Any other (for example no permission) is about Redis.
local function is_damage(error)
  local text = type(error) == 'table' and error.err or tostring(error)
  return string.find(text, 'DAMAGED', 1, true) or string.find(text, 'WRONGTYPE', 1, true)
end

local function load(key)
  local packed = redis.call('GET', key)
  if packed then
    local ok, S = pcall(cmsgpack.unpack, packed)
    if not ok or type(S) ~= 'table' or not S.head then
      error({err = 'DAMAGED what is stored under ' .. key .. ' cannot be read'})
    end
    return S, false
  end
  local fresh = {head = 0, trimmed = 0, n = 0, b = 0, seen = 0, exp = 0, sh = {t = 0, i = {}, s = 0}}
  fresh.dv, fresh.gaps, fresh.keys, fresh.reports, fresh.bl = {}, {}, {}, {}, ''
  return fresh, true
end

-- Records an earlier name of the log.
local function add_old_name(S, name)
  S.old_names = S.old_names or {}
  S.old_names[#S.old_names + 1] = name
  if #S.old_names > OLD_NAMES_MAX then table.remove(S.old_names, 1) end
end
