-- The append and attach procedures, one atomic step each, as a Redis function library.
--
-- library.rs writes the settings (PARTITIONS, RULES, MAX_PAYLOAD and the key names) in front of this, and the line that
-- makes it a library. Without that line it is a plain script that reads: a Redis that takes no writes refuses
-- functions, and does not refuse scripts. The first key of every function but sse_publish is the clock of a partition.
-- The other keys are declared for Redis Cluster: they share the hash tag of the first, and the library derives their
-- names from it.
--
-- Whether this was loaded as a library.
local is_library = redis.register_function ~= nil

-- Ids are handled as two numbers, ms and seq. Both stay below 2^53, where Lua's doubles are exact, because they are
-- made only from the server's time and from other ids of this library.

-- The gateways that have completed a handshake for each partition since this server process started. It is in the
-- library's memory on purpose: a restart or a promotion empties it.
local handshaken = {}
local handshakes = 0
-- The last value of each partition's clock in this process. If the stored clock differs, it was flushed, or another
-- server was the master in between.
local left = {}
-- When each partition's clock was found to be missing, although this process had stored it.
local flushed = {}
-- The server process that each partition's last handshake was for.
local runs = {}
-- The failover by which another server replaced this one: its number, and the replication id that this server had. Nil
-- while this server is the master.
local retired
-- Partitions that have had a recorder since this server process started, unless the last one has stepped down in order.
local recording = {}
-- The server process under which raw messages were recorded last, by partition. The partition's clock stores it too.
local raw = {}
-- When each partition's recording was last reported as interrupted; removed when an in-sync recorder acquires the
-- lease.
local told = {}
-- When each partition's horizon was last moved, in milliseconds of this server's clock.
local lost_at = {}
-- By partition and replica: the number of its subscription, in their order, and until when it counts without a sign of
-- life.
local listeners = {}
local subscriptions = 0
-- Each partition's last append of a recorder: its token and number.
local appended = {}
-- How many appends have recorded raw messages, and the token of the last one.
local appends, appender = {}, {}
-- Replicas that have stepped down from a partition. Commands that they sent before may arrive later, and must not make
-- them in sync again.
local gone = {}
local goings = 0
-- The server process's run id, from the last handshake.
local this_run
-- A call ends after the entry with which it exceeds this many bytes, because Redis serves no other client during a
-- call.
local CALL_BYTES = 4 * 1024 * 1024
-- Each entry of an attach counts as this many bytes more, because small entries take time by number. So the channels of
-- an attach that have long histories of small events are spread over several calls.
local ENTRY_COST = 4096
-- Maximum ids in a channel's list, and a quarter more before it is cut. `since=-N` asks for no more.
local MAX_IDS = 10000
-- The list holds this many ids more than `history`, because the stream is trimmed by whole nodes.
local SPARE_IDS = 200
-- For this many expired channels, a partition remembers that they had events.
local MAX_PAST = 100 + 100000 / PARTITIONS

-- Ends the `prev` of an event that is the first after a horizon.
local FORGOTTEN = '!'

local function text(ms, seq)
  return string.format('%.0f-%.0f', ms, seq)
end

local function parse(id)
  local ms, seq = string.match(id, '^(%d+)%-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

local function less(a_ms, a_seq, b_ms, b_seq)
  return a_ms < b_ms or (a_ms == b_ms and a_seq < b_seq)
end

-- The lowest id of the time that many milliseconds ago.
local function ago(state, milliseconds)
  return text(math.max(0, state.now - milliseconds), 0)
end

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- The parts of a pattern between its stars.
local function split(glob)
  local parts = {}
  for part in string.gmatch(glob .. '*', '([^*]*)%*') do
    parts[#parts + 1] = part
  end
  return parts
end

-- '*' matches any run of characters, and every other character matches itself. Each part is matched at its first place,
-- because clients choose the names, and Lua's own patterns would try all places of all parts. access/pattern.rs matches
-- the same way.
local function matches(parts, name)
  local first, last = parts[1], parts[#parts]
  if #parts == 1 then
    return name == first
  elseif string.sub(name, 1, #first) ~= first then
    return false
  end
  local at = #first + 1
  for i = 2, #parts - 1 do
    local _, found = string.find(name, parts[i], at, true)
    if not found then
      return false
    end
    at = found + 1
  end
  return string.sub(name, math.max(at, #name - #last + 1)) == last
end

local rules = {}
local rules_cached = 0

local function rule_of(channel)
  local cached = rules[channel]
  if cached then
    return cached
  end
  for _, rule in ipairs(RULES) do
    -- Not earlier, because Lua's own functions are not available while the library is loaded.
    rule.parts = rule.parts or split(rule.match)
    if matches(rule.parts, channel) then
      if rules_cached >= 10000 then
        rules, rules_cached = {}, 0
      end
      rules[channel], rules_cached = rule, rules_cached + 1
      return rule
    end
  end
end

-- The partition's state as stored. `ms` is nil if Redis has lost it.
local function load(keys)
  local prefix = string.sub(keys[1], 1, -1 - #CLOCK)
  local stored = redis.call('HMGET', keys[1], 'id', 'horizon', 'kept', 'changed', 'origin', 'wiped')
  local state = { key = keys[1], prefix = prefix, now = now_ms() }
  state.kept, state.changed = tonumber(stored[3] or 0), tonumber(stored[4] or 0)
  state.origin, state.wiped = stored[5], tonumber(stored[6] or 0)
  if stored[1] then
    state.ms, state.seq = parse(stored[1])
    state.horizon = stored[2]
  end
  if left[state.key] and left[state.key] ~= stored[1] then
    handshaken[state.key] = nil
    if not stored[1] then
      flushed[state.key] = state.now
    end
  end
  return state
end

local function clock(state)
  return text(state.ms, state.seq)
end

-- For how many milliseconds a channel without events is known to have had none, if channels are forgotten after
-- `expire`. Events that were appended under earlier rules have expired under those rules.
local function known(state, expire)
  return math.min(expire, math.max(state.kept, state.now - state.changed))
end

-- Whether the clock is older than an id that a gateway has seen.
local function is_behind(state, watermark)
  local ms, seq = parse(watermark)
  return not state.ms or less(state.ms, state.seq, ms, seq)
end

local function store(state)
  local id = clock(state)
  redis.call('HSET', state.key, 'id', id, 'horizon', state.horizon)
  left[state.key] = id
end

-- Moves the clock up to the server's time. Redis has lost events if `lost` is set or there is no clock. It has also
-- lost events if the clock is older than the greatest id that the caller or this process has seen. Then cursors from
-- before now may miss events, so the horizon moves here.
local function tick(state, watermark, lost)
  local new, seen_before = not state.ms, false
  if new then
    state.ms, state.seq, lost = 0, 0, true
    raw[state.key] = nil
  end
  for _, seen in ipairs({ watermark, left[state.key] }) do
    if is_behind(state, seen) then
      state.ms, state.seq = parse(seen)
      lost, seen_before = true, true
    end
  end
  local moved = state.now > state.ms
  if moved then
    state.ms, state.seq = state.now, 0
  elseif lost then
    state.seq = state.seq + 1
  end
  if lost then
    state.horizon = clock(state)
    lost_at[state.key] = state.now
  end
  if moved or lost then
    store(state)
  end
  if new then
    redis.call('HSET', state.key, 'run', this_run, 'base', clock(state))
    -- If no one has seen an earlier clock, the deployment begins here. Otherwise the clock was lost, with all channels.
    if seen_before then
      state.wiped = state.now
      redis.call('HSET', state.key, 'wiped', string.format('%.0f', state.now))
    else
      state.origin = state.horizon
      redis.call('HSET', state.key, 'origin', state.origin)
    end
  end
end

-- A caller without a handshake since the server started might append below ids that it has seen.
local BEHIND = 'BEHIND this server has forgotten events and takes no writes'

local function not_ready(keys, replica)
  local partition = handshaken[keys[1]]
  if partition and (not replica or partition[replica]) then
    return nil
  end
  return redis.error_reply('NOTREADY no gateway has handshaken for this server yet, try again')
end

local function live(state, channel, id, prev, payload)
  redis.call('PUBLISH', state.prefix .. LIVE .. channel, id .. ' ' .. prev .. '\n' .. payload)
end

-- Represents a channel in the set of channels that had events. Names are not kept longer than the channels.
local function mark(channel)
  return string.sub(redis.sha1hex(channel), 1, 16)
end

-- Whether a channel that Redis does not know may have had events that were lost. `kept` is for how long it is known to
-- have had none.
local function is_doubtful(state, kept)
  if state.wiped > state.now - kept then
    return true
  end
  local lost_ms = parse(state.horizon)
  return state.horizon ~= state.origin and state.now < lost_ms + LOST_BEGINNINGS
end

-- Notes the id of a channel's newest event in its list of ids. The list begins with the id of the channel's first
-- event, or with '-' if that is not known or no longer in it.
local function note_id(state, channel, rule, id, is_first)
  local key = state.prefix .. IDS .. channel
  if not is_first then
    local keep = math.min(rule.history + SPARE_IDS, MAX_IDS)
    local count = redis.call('RPUSH', key, id)
    if count > keep + keep / 4 then
      redis.call('LTRIM', key, -keep, -1)
      redis.call('LPUSH', key, '-')
    end
    return
  end
  local past = state.prefix .. PAST
  local is_new = redis.call('ZADD', past, state.now, mark(channel)) == 1
  if is_new and redis.call('ZCARD', past) > MAX_PAST then
    redis.call('ZREMRANGEBYRANK', past, 0, 0)
  end
  if is_new and not is_doubtful(state, known(state, rule.expire)) then
    redis.call('RPUSH', key, id)
  else
    redis.call('RPUSH', key, '-', id)
  end
end

-- Appends one event. Returns its id, '-' for an ephemeral channel, or an error table.
local function append(state, channel, payload)
  local rule = rule_of(channel)
  if rule.history == 0 then
    live(state, channel, '-', '-', payload)
    return '-'
  end
  local ids_key = state.prefix .. IDS .. channel
  local log_key = state.prefix .. LOG .. channel
  local prev = redis.call('LINDEX', ids_key, -1)
  local is_first = not prev
  prev = prev or ago(state, known(state, rule.expire))
  -- The first event after the horizon names the horizon, so that readers notice it.
  local prev_ms, prev_seq = parse(prev)
  local horizon_ms, horizon_seq = parse(state.horizon)
  if less(prev_ms, prev_seq, horizon_ms, horizon_seq) then
    prev = state.horizon .. FORGOTTEN
  end
  local id = text(state.ms, state.seq + 1)
  local added = redis.pcall('XADD', log_key, 'MAXLEN', '~', rule.history, id,
    'prev', prev, 'payload', payload)
  if type(added) == 'table' and added.err then
    return added
  end
  state.seq = state.seq + 1
  redis.call('XTRIM', log_key, 'MINID', '~', ago(state, rule.max_age))
  -- If ids are ahead of the server's time, they are also kept until the server's time has reached them.
  local expire = rule.expire + math.max(0, state.ms - state.now)
  redis.call('PEXPIRE', log_key, expire)
  note_id(state, channel, rule, id, is_first)
  redis.call('PEXPIRE', ids_key, expire)
  live(state, channel, id, prev, payload)
  return id
end

-- Entries and facts as one text, made to be split without copying:
-- now clock horizon head expire more first count LF, then per entry: id prev length LF payload
--
-- `first` is the id of the channel's first event, 0-0 if it never had one, '-' if that is not known.
local function page(state, channel, entries, more)
  local out = {}
  for _, entry in ipairs(entries) do
    local prev, payload = '-', nil
    local fields = entry[2]
    for i = 1, #fields, 2 do
      if fields[i] == 'prev' then
        prev = fields[i + 1]
      elseif fields[i] == 'payload' then
        payload = fields[i + 1]
      end
    end
    -- An entry that another program wrote is not an event, or has no predecessor.
    if not string.find(prev, '^%d+%-%d+!?$') then
      prev = '-'
    end
    if payload then
      out[#out + 1] = entry[1] .. ' ' .. prev .. ' ' .. #payload .. '\n' .. payload
    end
  end
  local ids_key = state.prefix .. IDS .. channel
  local head = redis.call('LINDEX', ids_key, -1)
  local expire = known(state, rule_of(channel).expire)
  local first = '-'
  if head then
    first = redis.call('LINDEX', ids_key, 0)
  elseif not is_doubtful(state, expire) and not redis.call('ZSCORE', state.prefix .. PAST, mark(channel)) then
    first = '0-0'
  end
  local facts = { string.format('%.0f', state.now), clock(state), state.horizon, head or '-',
    string.format('%.0f', expire), more and '1' or '0', first, tostring(#out) }
  return table.concat(facts, ' ') .. '\n' .. table.concat(out)
end

local function size(entry)
  local bytes = 64
  for _, field in ipairs(entry[2]) do
    bytes = bytes + #field
  end
  return bytes
end

-- Reads entries in steps until there are `max_entries`, or at least `at_least` entries and the next one would exceed
-- `max_bytes`. `step` makes the command that continues after an id. Returns whether there may be more, and how many
-- bytes were read, including entries that were left out.
--
-- The size of an entry is known only after it was copied. So the first step reads one entry. Each further step reads no
-- more entries than there were before it, and no more than fit if they are of the same size.
local function read(command, step, at_least, max_entries, max_bytes)
  local entries, bytes = {}, 0
  while true do
    local count = math.min(16, #entries + 1, max_entries - #entries)
    if bytes > 0 then
      count = math.min(count, math.ceil((max_bytes - bytes) * #entries / bytes))
    end
    command[#command + 1], command[#command + 2] = 'COUNT', count
    local found, fits = redis.call(unpack(command)), true
    for _, entry in ipairs(found) do
      bytes = bytes + size(entry)
      fits = fits and (bytes <= max_bytes or #entries < at_least)
      if fits then
        entries[#entries + 1] = entry
      end
    end
    if fits and #found < count then
      return entries, false, bytes
    end
    if not fits or #entries >= max_entries or (bytes >= max_bytes and #entries >= at_least) then
      return entries, true, bytes
    end
    command = step('(' .. found[#found][1])
  end
end

-- Steps of a read that begins with the newest entry.
local function older_in(log)
  return function(before)
    return { 'XREVRANGE', log, before, '-' }
  end
end

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

-- Why a payload cannot be an event, or nil. payload.rs has the same rules for payloads that are published in another
-- way. The two may differ only if cjson fails (at 1,000 levels, or at half a surrogate pair in the data) or sees only
-- the last of two equal keys. Readers use a stored payload as data if payload.rs refuses it.
local function rejected(payload)
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
  local reason = fault(envelope)
  return reason and is_json(payload) and reason or nil
end

-- The expiry times of the rules, as one word, and the shortest of them, in milliseconds.
local function expiries()
  local words, shortest = {}, math.huge
  for _, rule in ipairs(RULES) do
    words[#words + 1] = rule.match .. '\n' .. (rule.history > 0 and rule.expire or 0)
    if rule.history > 0 then
      shortest = math.min(shortest, rule.expire)
    end
    -- Every channel matches this rule, so the rules after it are never used.
    if rule.match == '*' then
      break
    end
  end
  return redis.sha1hex(table.concat(words, '\n')), shortest
end

-- Notes the rules for events that are appended from now on. If the rules were others until now, also notes for how long
-- those have kept every channel.
local function note_rules(state)
  local rules, shortest = expiries()
  local stored = redis.call('HMGET', state.key, 'rules', 'shortest')
  if stored[1] == rules then
    return
  end
  if stored[1] then
    state.kept, state.changed = known(state, tonumber(stored[2])), state.now
  end
  redis.call('HSET', state.key, 'rules', rules, 'shortest', string.format('%.0f', shortest),
    'kept', string.format('%.0f', state.kept), 'changed', string.format('%.0f', state.changed))
end

-- A server gets another replication id when it becomes a copy, and again when it is promoted.
local function replication_id()
  return string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
end

-- number of the failover by which another server became the master
--
-- From now on this server refuses appends and reads until a gateway completes the handshake with it. It accepts a
-- handshake only with the number of a later failover, or after it has been a copy and was promoted. Otherwise gateways
-- that have not noticed the failover would continue to use it.
local function retire(_, args)
  local epoch = tonumber(args[1])
  if not retired or retired.epoch < epoch then
    retired, handshaken, handshakes = { epoch = epoch, id = replication_id() }, {}, 0
  end
  return 1
end

-- replica, run id, watermark, run id under which the watermark was seen, the present time by the clock of
-- the server that gave out the watermark; 1 if this server ran beside that one; number of the failover by which this
-- server is the master
--
-- A server that ran beside the master has replaced it. Replication is asynchronous: the master's last writes may be
-- lost without a trace if no gateway has seen them.
--
-- The first gateway that completes a handshake with a server that has lost events has not always seen the newest ids.
-- If the server's time is behind, ids continue from the time given here and a little more, not from the watermark. All
-- other gateways' watermarks are below that, so their clients do not see ids go back.
--
-- `base` is the clock when a gateway first reached this server process. Newer ids that a gateway saw under an earlier
-- process have been lost.
--
-- All recorders that were subscribed to the process before are out of sync here. Its in-sync marks and its lease are
-- deleted. So the first recorder that subscribes to this process records, and does not leave its messages to a later
-- one.
local function handshake(keys, args)
  local replica, run, watermark, watermark_run, expected, overlaps, epoch = unpack(args)
  expected = tonumber(expected)
  if retired and tonumber(epoch) <= retired.epoch and replication_id() == retired.id then
    return redis.error_reply('RETIRED another redis is the master')
  end
  retired = nil
  local stored = redis.call('HMGET', keys[1], 'run', 'base')
  local is_new = runs[keys[1]] ~= run
  this_run, runs[keys[1]] = run, run
  local state = load(keys)
  local base, lost = stored[2], false
  if state.ms then
    local watermark_ms, watermark_seq = parse(watermark)
    if stored[1] ~= run then
      base, lost = clock(state), watermark == '0-0' or overlaps == '1'
      -- This process may have been the master before.
      recording[keys[1]], told[keys[1]], listeners[keys[1]] = nil, nil, nil
      appended[keys[1]], lost_at[keys[1]], raw[keys[1]] = nil, nil, nil
      if stored[1] then
        redis.call('DEL', state.prefix .. IN_SYNC, state.prefix .. LEASE)
      end
    end
    local base_ms, base_seq = parse(base)
    -- Once is enough: a gateway that has seen no id newer than the horizon is already below it.
    local horizon_ms, horizon_seq = parse(state.horizon)
    if watermark_run ~= run and less(base_ms, base_seq, watermark_ms, watermark_seq)
      and not less(watermark_ms, watermark_seq, horizon_ms, horizon_seq) then
      lost = true
    end
  end
  local latest = expected + (is_new and LATENCY or 0)
  if (lost or is_behind(state, watermark)) and state.now < latest then
    watermark = text(expected + LATENCY, 0)
  end
  tick(state, watermark, lost)
  store(state)
  redis.call('HSET', keys[1], 'run', run, 'base', base or clock(state))
  note_rules(state)
  handshakes = handshakes + 1
  if handshakes > 10000 then
    handshaken, handshakes = {}, 0
  end
  handshaken[keys[1]] = handshaken[keys[1]] or {}
  handshaken[keys[1]][replica] = true
  return clock(state)
end

-- Gives an id to an event that is lost, because it was never recorded. The id becomes the newest of the channel and no
-- entry has it, so every cursor before it gets a gap. The published line makes readers that are up to date read the
-- history.
local function lose(state, channel)
  local rule = rule_of(channel)
  if rule.history == 0 then
    return '-'
  end
  state.seq = state.seq + 1
  local id = clock(state)
  local expire = rule.expire + math.max(0, state.ms - state.now)
  local ids_key = state.prefix .. IDS .. channel
  note_id(state, channel, rule, id, not redis.call('LINDEX', ids_key, -1))
  redis.call('PEXPIRE', ids_key, expire)
  redis.call('PEXPIRE', state.prefix .. LOG .. channel, expire)
  redis.call('PUBLISH', state.prefix .. LIVE .. channel, '- ' .. id .. '\n')
  return id
end

-- replica, watermark, token, number of this append, then per message: channel, payload, digest. With an empty channel
-- nothing is recorded and only the digest is published, as the recorder's position. A channel after a NUL is that of a
-- lost message. Of several in a row, the last takes an id for all.
--
-- The recorder repeats an append whose reply was lost. It is carried out only once.
local function record(keys, args)
  if not tonumber(args[4]) or (#args - 4) % 3 ~= 0 then
    return redis.error_reply('ERR usage: ssegw_record replica watermark token number [channel payload digest]...')
  end
  local state = load(keys)
  local refused = not_ready(keys, args[1])
  if refused then
    return refused
  end
  if redis.call('GET', state.prefix .. LEASE) ~= args[3] then
    return redis.error_reply('FENCED another recorder holds the lease')
  end
  -- An append that the recorder has given up may arrive after its repetition, and after later ones.
  local token, number = args[3], tonumber(args[4])
  local last = appended[state.key]
  if last and last.token == token and number <= last.number then
    return {}
  end
  appended[state.key] = { token = token, number = number }
  tick(state, args[2])
  local ids, digests = {}, {}
  for i = 5, #args, 3 do
    local channel, payload = args[i], args[i + 1]
    digests[#digests + 1] = args[i + 2]
    if channel ~= '' then
      -- A key that another program wrote to must not block the messages after this one.
      local lost = string.byte(channel) == 0
      local ok, id
      if not lost then
        ok, id = pcall(append, state, channel, payload)
      elseif args[i + 3] == channel then
        ok, id = true, '-'
      else
        ok, id = pcall(lose, state, string.sub(channel, 2))
      end
      if not ok or type(id) == 'table' then
        if not lost then
          live(state, channel, '-', '-', payload)
        end
        id = '!' .. (type(id) == 'table' and id.err or tostring(id))
      end
      ids[#ids + 1] = id
    end
  end
  store(state)
  recording[state.key] = true
  if #ids > 0 then
    appends[state.key], appender[state.key] = (appends[state.key] or 0) + 1, token
  end
  if raw[state.key] ~= this_run and #ids > 0 then
    raw[state.key] = this_run
    redis.call('HSET', state.key, 'raw', this_run)
  end
  redis.call('PUBLISH', state.prefix .. RECORDED, table.concat(digests, ' '))
  return ids
end

-- replica, watermark, name of this call, per channel: entries at least, entries at most, bytes at most; then channels
--
-- The answer is published on the caller's answer channel. There it arrives after every event that it already contains,
-- and before every later one. Its last message names the call. The answer may lack channels, because those before them
-- were large. The caller asks for them again.
local function attach(keys, args)
  local replica, watermark, call = args[1], args[2], args[3]
  local at_least, max_entries, max_bytes = tonumber(args[4]), tonumber(args[5]), tonumber(args[6])
  local state = load(keys)
  if is_library then
    local refused = not_ready(keys, replica)
    if refused then
      return refused
    end
    tick(state, watermark)
  elseif is_behind(state, watermark) then
    return redis.error_reply(BEHIND)
  end
  local answers = state.prefix .. ANSWERS .. replica
  local copied = 0
  local function newest_page(channel)
    local log = state.prefix .. LOG .. channel
    local older = older_in(log)
    local newest_first, _, bytes = read(older('+'), older, at_least, max_entries, max_bytes)
    copied = copied + bytes + ENTRY_COST * #newest_first
    local entries = {}
    for e = #newest_first, 1, -1 do
      entries[#entries + 1] = newest_first[e]
    end
    return page(state, channel, entries, #entries < redis.call('XLEN', log))
  end
  for i = 7, #args do
    local channel = args[i]
    -- A key that another program wrote to must not block other channels.
    local ok, answer = pcall(newest_page, channel)
    redis.call('PUBLISH', answers, channel .. '\n' .. (ok and answer or '!'))
    if copied >= CALL_BYTES then
      break
    end
  end
  redis.call('PUBLISH', answers, '\n' .. call .. ' ' .. clock(state) .. ' ' .. state.horizon)
  return clock(state)
end

-- watermark, channel, after, entries at most, bytes at most
local function history(keys, args)
  local watermark, channel, after, max_entries, max_bytes =
    args[1], args[2], args[3], tonumber(args[4]), tonumber(args[5])
  local state = load(keys)
  if is_library then
    if not state.ms then
      handshaken[keys[1]] = nil
    end
    local refused = not_ready(keys)
    if refused then
      return refused
    end
  elseif is_behind(state, watermark) then
    return redis.error_reply(BEHIND)
  end
  -- A client sends the cursor, which may be newer than any id that Redis accepts.
  if is_behind(state, after) then
    return page(state, channel, {}, false)
  end
  local log = state.prefix .. LOG .. channel
  local function newer(than)
    return { 'XRANGE', log, than, '+' }
  end
  local entries, more = read(newer('(' .. after), newer, 1, max_entries, max_bytes)
  return page(state, channel, entries, more)
end

-- channel, count: the ids of its newest events, oldest first
local function newest(keys, args)
  local key = string.sub(keys[1], 1, -1 - #CLOCK) .. IDS .. args[1]
  local ids = redis.call('LRANGE', key, -tonumber(args[2]), -1)
  if ids[1] == '-' then
    table.remove(ids, 1)
  end
  return ids
end

-- Notes for that many milliseconds that a replica is subscribed and has missed nothing.
local function note_in_sync(prefix, replica, ttl)
  redis.call('ZADD', prefix .. IN_SYNC, now_ms() + ttl, replica)
  redis.call('PEXPIRE', prefix .. IN_SYNC, ttl)
end

-- Removes marks with times that only another server's clock can have written, which was ahead of this one.
local function forget_future(key, latest)
  redis.call('ZREMRANGEBYSCORE', key, '(' .. latest, '+inf')
end

-- Whether a token belongs to this replica.
local function is_of(token, replica)
  return string.sub(token, 1, #replica + 1) == replica .. ':'
end

-- Whether Redis was flushed so recently that in-sync recorders may not have renewed their marks yet.
local function just_flushed(key, now, ttl)
  if left[key] and redis.call('EXISTS', key) == 0 then
    flushed[key] = now
  end
  local since = flushed[key]
  return since and now >= since and now - since < ttl
end

-- The subscription to which a token or a barrier belongs: the part before the last dash.
local function subscription_of(name)
  return string.match(name, '^(.*)%-')
end

-- replica, barrier, milliseconds
--
-- A recorder that has just subscribed is out of sync, and publishes its barrier. Its earlier in-sync mark is not valid
-- any more.
local function listen(keys, args)
  local replica, barrier, ttl = args[1], args[2], tonumber(args[3])
  local prefix = string.sub(keys[1], 1, -1 - #CLOCK)
  redis.call('ZREM', prefix .. IN_SYNC, replica)
  -- A barrier that is published again belongs to the same subscription.
  local subscription = subscription_of(barrier)
  listeners[keys[1]] = listeners[keys[1]] or {}
  local own = listeners[keys[1]][replica]
  if not own or own.subscription ~= subscription then
    subscriptions = subscriptions + 1
    own = { subscription = subscription, number = subscriptions }
    listeners[keys[1]][replica] = own
  end
  own.ends = now_ms() + ttl
  redis.call('PUBLISH', prefix .. RECORDED, barrier)
  return 1
end

-- Whether there is another recorder that subscribed earlier. It has messages that this one missed, so it has to record.
local function is_later(key, replica, now, ttl)
  local own = listeners[key] and listeners[key][replica]
  local later = false
  if own then
    own.ends = now + ttl
  end
  for other, listener in pairs(listeners[key] or {}) do
    if listener.ends < now or listener.ends > now + ttl then
      listeners[key][other] = nil
    elseif own and listener.number < own.number then
      later = true
    end
  end
  return later
end

-- Whether other recorders have recorded raw messages since that number of appends.
local function is_late(key, count, token)
  return (appends[key] or 0) ~= count and subscription_of(appender[key] or '') ~= subscription_of(token)
end

-- replica, new token, milliseconds, 1 if the caller is in sync, then nothing, or the number of a preemption
--
-- An out-of-sync caller may have missed messages that are not recorded yet. So it is denied the lease while any
-- recorder is in sync, even if it still holds the lease from before. A recorder, in sync or out of sync, preempts an
-- out-of-sync holder that may have missed messages pending at that recorder, and takes the lease from it.
--
-- The new token is published as a fence: when it arrives, every append of an earlier token has been seen, and there
-- will be no more. The number of appends that have recorded raw messages follows the token of an out-of-sync caller. A
-- preemption of that caller carries this number. It is too late when others have recorded raw messages since: the
-- preempting recorder's messages are older, and would be recorded after them.
--
-- Answers 0 when the lease is denied, 1 when it is granted, 2 when recording was interrupted as well: there was a
-- recorder before, and no replica was subscribed all the time since. Raw messages of that time may be lost, also those
-- on their way to a subscriber that was cut. So the horizon moves, and clients receive a gap. It does not move if no
-- raw message was recorded since this process started, because events that functions append are not lost by this.
-- Answers 3 when a preemption is too late: the caller is out of sync from then on.
local function acquire(keys, args)
  local refused = not_ready(keys)
  if refused then
    return refused
  end
  local replica, token, ttl, in_sync = args[1], args[2], tonumber(args[3]), args[4] == '1'
  local preemption = tonumber(args[5])
  local prefix = string.sub(keys[1], 1, -1 - #CLOCK)
  local now = now_ms()
  if preemption and is_late(keys[1], preemption, token) then
    redis.call('ZREM', prefix .. IN_SYNC, replica)
    if is_of(redis.call('GET', prefix .. LEASE) or '', replica) then
      redis.call('DEL', prefix .. LEASE)
      redis.call('PUBLISH', prefix .. RECORDED, '~')
    end
    return 3
  elseif preemption then
    gone[keys[1] .. replica] = nil
  elseif gone[keys[1] .. replica] then
    return 0
  end
  forget_future(prefix .. IN_SYNC, now + ttl * IN_SYNC_LEASES)
  if in_sync then
    note_in_sync(prefix, replica, ttl * IN_SYNC_LEASES)
  else
    redis.call('ZREM', prefix .. IN_SYNC, replica)
  end
  local later = is_later(keys[1], replica, now, ttl)
  local holder = redis.call('GET', prefix .. LEASE)
  local own = holder and is_of(holder, replica)
  if holder and not own and not preemption then
    -- A lease that was copied from a server whose clock was ahead would expire too late.
    if redis.call('PTTL', prefix .. LEASE) > ttl then
      redis.call('PEXPIRE', prefix .. LEASE, ttl)
    end
    return 0
  end
  if not in_sync and just_flushed(keys[1], now, ttl) then
    return 0
  end
  if not in_sync and not preemption and redis.call('ZCOUNT', prefix .. IN_SYNC, '(' .. now, '+inf') > 0 then
    if own then
      redis.call('DEL', prefix .. LEASE)
      redis.call('PUBLISH', prefix .. RECORDED, '~')
    end
    return 0
  end
  if not in_sync and not preemption and later then
    if own then
      redis.call('DEL', prefix .. LEASE)
    end
    return 0
  end
  redis.call('SET', prefix .. LEASE, token, 'PX', ttl)
  redis.call('PUBLISH', prefix .. RECORDED, '#' .. token .. (in_sync and '' or appends[keys[1]] or 0))
  local interrupted = recording[keys[1]] and not in_sync
  recording[keys[1]] = true
  local since = told[keys[1]]
  told[keys[1]] = not in_sync and (interrupted and now or since) or nil
  if not interrupted or (preemption and since and now - since < RESUMED) then
    return 1
  end
  if redis.call('HGET', keys[1], 'raw') == this_run then
    tick(load(keys), '0-0', true)
  end
  return 2
end

-- milliseconds since the newest of the messages was received, 1 if an in-sync recorder would have received the same
-- ones
--
-- A replica will not record raw messages that it has received. Either the server process that sent them is gone or has
-- been replaced, or the lease was lost before. If an in-sync recorder records them, or the horizon has moved since,
-- nothing happens. Otherwise the horizon moves now, and clients receive a gap. Answers 1 if it moves.
local function forsake(keys, args)
  local refused = not_ready(keys)
  if refused then
    return refused
  end
  local state = load(keys)
  local age, shared = tonumber(args[1]), args[2] == '1'
  local since = lost_at[keys[1]]
  if shared and redis.call('ZCOUNT', state.prefix .. IN_SYNC, '(' .. state.now, '+inf') > 0 then
    return 0
  end
  if since and since <= state.now and since > state.now - age then
    return 0
  end
  tick(state, '0-0', true)
  return 1
end

-- Removes a replica's in-sync mark. Releases the lease if it was acquired under this token, or, without a token, by
-- this replica. If the replica stops for good, calls that it sent before and that arrive later do not make it in sync
-- again.
local function give_back(keys, replica, token, for_good)
  local prefix = string.sub(keys[1], 1, -1 - #CLOCK)
  redis.call('ZREM', prefix .. IN_SYNC, replica)
  if listeners[keys[1]] then
    listeners[keys[1]][replica] = nil
  end
  if for_good then
    if goings >= 10000 then
      gone, goings = {}, 0
    end
    gone[keys[1] .. replica], goings = true, goings + 1
  end
  local holder = redis.call('GET', prefix .. LEASE)
  if holder and (holder == token or (not token and is_of(holder, replica))) then
    redis.call('DEL', prefix .. LEASE)
    redis.call('PUBLISH', prefix .. RECORDED, '~')
  end
end

-- replica, token, 1 if the replica stops for good, 1 if nothing is interrupted by that: it was the last to be
-- subscribed, ended its subscription itself and recorded all its messages
--
-- A replica is not subscribed any more.
local function release(keys, args)
  if args[4] == '1' then
    recording[keys[1]] = nil
  end
  give_back(keys, args[1], args[2], args[3] == '1')
  return 1
end

-- replica, a notice
--
-- A replica is to stop, and steps down if another replica is in sync, which has the same messages pending. Its in-sync
-- mark is removed and its lease released. Answers 1 then and publishes the notice, 0 when no other replica is in sync
-- yet, 2 when there is no other replica at all.
local function step_down(keys, args)
  local replica, notice = args[1], args[2]
  local prefix = string.sub(keys[1], 1, -1 - #CLOCK)
  local own = redis.call('ZSCORE', prefix .. IN_SYNC, replica)
  local now = now_ms()
  local in_sync = redis.call('ZCOUNT', prefix .. IN_SYNC, '(' .. now, '+inf')
  if in_sync == ((own and tonumber(own) > now) and 1 or 0) then
    -- Every replica subscribes to the first, and this one also to the other, until its last stream has ended.
    local listening = redis.call('PUBSUB', 'NUMSUB', REVOKE, prefix .. ANSWERS .. replica)
    return listening[2] > listening[4] and 0 or 2
  end
  give_back(keys, replica, nil, true)
  redis.call('PUBLISH', prefix .. RECORDED, notice)
  return 1
end

-- replica, token, milliseconds
local function renew(keys, args)
  local replica, token, ttl = args[1], args[2], tonumber(args[3])
  if gone[keys[1] .. replica] then
    return 0
  end
  local prefix = string.sub(keys[1], 1, -1 - #CLOCK)
  -- A call that arrives late may belong to a subscription that was cut since.
  if redis.call('GET', prefix .. LEASE) ~= token then
    return 0
  end
  note_in_sync(prefix, replica, ttl * IN_SYNC_LEASES)
  redis.call('PEXPIRE', prefix .. LEASE, ttl)
  return 1
end

-- replica, recorders, milliseconds, 1 if the caller is a candidate; 0 milliseconds release the candidacy. Answers 0
-- without a candidacy, 1 with one, 2 with one too many.
--
-- A candidate keeps its candidacy, even if it expired while Redis stalled. No other recorder may have the messages that
-- were published in that time.
local function candidacy(keys, args)
  local replica, recorders, ttl, has = args[1], tonumber(args[2]), tonumber(args[3]), args[4] == '1'
  local key = string.sub(keys[1], 1, -1 - #CLOCK) .. CANDIDATES
  local now = now_ms()
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  if ttl > 0 then
    forget_future(key, now + ttl)
  end
  local others = redis.call('ZCARD', key) - (redis.call('ZSCORE', key, replica) and 1 or 0)
  if ttl == 0 or (others >= recorders and not has) then
    redis.call('ZREM', key, replica)
    return 0
  end
  redis.call('ZADD', key, now + ttl, replica)
  redis.call('PEXPIRE', key, ttl * 2)
  return others >= recorders and 2 or 1
end

local function idempotency_key(state, channel, idempotency)
  return state.prefix .. IDEMPOTENCY .. redis.sha1hex(#channel .. ':' .. channel .. ':' .. idempotency)
end

-- Appends one event. If its idempotency key was used within the last five minutes, answers the id of that time. The key
-- names the publisher as well. It belongs to a payload: `digest` is that of this one.
local function once(state, channel, payload, idempotency, digest)
  if not idempotency then
    return append(state, channel, payload)
  end
  local seen_key = idempotency_key(state, channel, idempotency)
  local seen = redis.call('GET', seen_key)
  if seen then
    if string.sub(seen, 1, #digest) ~= digest then
      return redis.error_reply('KEYREUSED this idempotency key came with another payload within the last five minutes')
    end
    return string.sub(seen, #digest + 1)
  end
  local id = append(state, channel, payload)
  if type(id) == 'string' then
    redis.call('SET', seen_key, digest .. id, 'PX', 300000)
  end
  return id
end

-- channel, payload [, idempotency key]: for every backend that can call a function
--
-- A Redis Cluster finds the node by the keys. A single Redis needs none.
local function publish(given, args)
  local channel, payload, idempotency = args[1], args[2], args[3]
  if not channel or not payload or #args > 3 then
    return redis.error_reply('ERR usage: FCALL sse_publish 0 <channel> <payload> [idempotency key]')
  end
  if #channel < 1 or #channel > 256 or string.find(channel, '%c')
    or string.find(channel, '\194[\128-\159]') or not is_utf8(channel) then
    return redis.error_reply('BADCHANNEL a channel name is 1 to 256 bytes of UTF-8 without control characters')
  end
  local reason = rejected(payload)
  if reason then
    return redis.error_reply(reason)
  end
  local partition = tonumber(string.sub(redis.sha1hex(channel), 1, 8), 16) % PARTITIONS
  local prefix = PREFIXES[partition + 1]
  local keys = { prefix .. CLOCK, prefix .. PAST, prefix .. LOG .. channel, prefix .. IDS .. channel }
  local state = load(keys)
  local refused = not_ready(keys)
  if refused then
    return refused
  end
  local key = idempotency and idempotency ~= '' and 'FCALL:' .. idempotency or nil
  if key then
    keys[#keys + 1] = idempotency_key(state, channel, key)
  end
  if #given > 0 and table.concat(given, '\n') ~= table.concat(keys, '\n') then
    return redis.error_reply('ERR the keys of this call are ' .. table.concat(keys, ' '))
  end
  tick(state, '0-0')
  local id = once(state, channel, payload, key, key and redis.sha1hex(payload))
  store(state)
  return id
end

-- replica, watermark, then per event: channel, payload, and nothing or the payload's digest and an idempotency key
--
-- For a gateway, which has checked its events. Answers an id per event, or '!' and the reason if there is none.
local function append_all(keys, args)
  local state = load(keys)
  local refused = not_ready(keys, args[1])
  if refused then
    return refused
  end
  tick(state, args[2])
  local ids = {}
  for i = 3, #args, 3 do
    -- A key that another program wrote to must not block the events of other channels.
    local digest, key = string.sub(args[i + 2], 1, 40), string.sub(args[i + 2], 41)
    local ok, id = pcall(once, state, args[i], args[i + 1], key ~= '' and key or nil, digest)
    if not ok or type(id) == 'table' then
      id = '!' .. (type(id) == 'table' and id.err or tostring(id))
    end
    ids[#ids + 1] = id
  end
  store(state)
  return ids
end

if not is_library then
  local reads = { ssegw_attach = attach, ssegw_history = history }
  return reads[table.remove(ARGV, 1)](KEYS, ARGV)
end

local always = { 'allow-oom' }
local reads = { 'no-writes' }
redis.register_function('ssegw_record', record)
redis.register_function('ssegw_append', append_all)
redis.register_function('sse_publish', publish)
redis.register_function { function_name = 'ssegw_retire', callback = retire, flags = always }
redis.register_function { function_name = 'ssegw_handshake', callback = handshake, flags = always }
redis.register_function { function_name = 'ssegw_attach', callback = attach, flags = always }
redis.register_function { function_name = 'ssegw_listen', callback = listen, flags = always }
redis.register_function { function_name = 'ssegw_acquire', callback = acquire, flags = always }
redis.register_function { function_name = 'ssegw_renew', callback = renew, flags = always }
redis.register_function { function_name = 'ssegw_step_down', callback = step_down, flags = always }
redis.register_function { function_name = 'ssegw_release', callback = release, flags = always }
redis.register_function { function_name = 'ssegw_forsake', callback = forsake, flags = always }
redis.register_function { function_name = 'ssegw_candidate', callback = candidacy, flags = always }
redis.register_function { function_name = 'ssegw_history', callback = history, flags = reads }
redis.register_function { function_name = 'ssegw_newest', callback = newest, flags = reads }
