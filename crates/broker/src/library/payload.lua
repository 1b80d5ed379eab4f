-- The rules that a payload has to follow to become an event. Recorders and POST /events check it in payload.rs.

-- RFC 3629, table 3-7 of the Unicode standard: the well-formed sequences.
local function is_utf8(payload)
  local at = 1
  while true do
    at = string.find(payload, '[\128-\255]', at)
    if not at then
      return true
    end
    local lead = string.byte(payload, at)
    local rest
    if lead >= 194 and lead <= 223 then
      rest = '^[\128-\191]'
    elseif lead == 224 then
      rest = '^[\160-\191][\128-\191]'
    elseif lead == 237 then
      rest = '^[\128-\159][\128-\191]'
    elseif lead >= 225 and lead <= 239 then
      rest = '^[\128-\191][\128-\191]'
    elseif lead == 240 then
      rest = '^[\144-\191][\128-\191][\128-\191]'
    elseif lead >= 241 and lead <= 243 then
      rest = '^[\128-\191][\128-\191][\128-\191]'
    elseif lead == 244 then
      rest = '^[\128-\143][\128-\191][\128-\191]'
    end
    if not rest or not string.find(payload, rest, at + 1) then
      return false
    end
    at = at + (lead < 224 and 2 or lead < 240 and 3 or 4)
  end
end

-- Text that cjson accepts although it is not JSON: control characters in strings, numbers that end with a dot.
local function is_json(payload)
  local rest = string.gsub(string.gsub(payload, '\\.', ''), '"[^"%z\1-\31]*"', '')
  return not string.find(rest, '"') and not string.find(rest, '%.%D')
end

local ENVELOPE = { event = true, data = true, retry = true, ['end'] = true }

-- Why an envelope cannot be opened, or nil.
local function fault(envelope)
  local event, retry, last = envelope.event, envelope.retry, envelope['end']
  if event ~= nil and event ~= cjson.null then
    if type(event) ~= 'string' then
      return 'BADENVELOPE event has to be a string'
    elseif string.find(event, '[\r\n%z]') then
      return 'BADEVENT event cannot hold CR, LF or NUL'
    elseif string.sub(event, 1, 8) == 'gateway.' then
      return 'BADEVENT event types that start with gateway. are reserved'
    elseif event == 'error' or event == 'open' then
      return 'BADEVENT event types error and open are those of EventSource itself'
    end
  end
  if retry ~= nil and retry ~= cjson.null
    and (type(retry) ~= 'number' or retry < 0 or retry ~= math.floor(retry) or retry > 4294967295) then
    return 'BADENVELOPE retry has to be a whole number of milliseconds'
  end
  if last ~= nil and last ~= cjson.null and type(last) ~= 'boolean' then
    return 'BADENVELOPE end has to be true or false'
  end
  return nil
end

-- A parser that accepts neither NaN nor hexadecimal numbers. It is made at the first use, because cjson is not
-- available while the library is loaded.
local json

-- Why a payload cannot be an event, or nil, and whether it is an end. payload.rs has the same rules for payloads that are published in another
-- way. The two may differ only if cjson fails (at 1,000 levels, or at half a surrogate pair in the data) or sees only
-- the last of two equal keys. Readers use a stored payload as data if payload.rs refuses it.
local function examine(payload)
  if #payload > MAX_PAYLOAD then
    return 'TOOLARGE the payload has more than ' .. MAX_PAYLOAD .. ' bytes'
  end
  if not is_utf8(payload) then
    return 'NOTUTF8 the payload is not UTF-8'
  end
  if not string.find(payload, '^[ \t\r\n]*{') then
    return nil
  end
  if not json then
    json = cjson.new()
    json.decode_invalid_numbers(false)
  end
  local ok, envelope = pcall(json.decode, payload)
  if not ok or envelope.data == nil then
    return nil
  end
  for key in pairs(envelope) do
    if not ENVELOPE[key] then
      return nil
    end
  end
  local reason, is_end = fault(envelope), envelope['end'] == true
  if (reason or is_end) and is_json(payload) then
    return reason, is_end
  end
  return nil
end
