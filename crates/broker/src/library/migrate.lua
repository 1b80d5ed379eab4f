-- Moving a deployment to another Redis: the phases of a partition at both ends, and copies of its channels.

-- The facts of a partition that go with it, in their order.
local FACTS = { 'id', 'horizon', 'kept', 'changed', 'origin', 'wiped', 'rules', 'shortest' }

local function enter(state, phase, rest)
  redis.call('HSET', state.key, 'migration', phase .. ' ' .. state.migration .. (rest or ''))
end

local function another()
  return redis.error_reply('OTHERMIGRATION another migration works on this partition')
end

-- The steps at the Redis that the deployment leaves. Each answers a list of texts, or an error.
local leaving = {}

-- Begins or continues to copy. The caller takes the trace over from another replica. If the partition is not
-- closed, a migration to another target may begin instead.
function leaving.copy(state, name, replica)
  if state.migration ~= name and state.phase and state.phase ~= 'copying' then
    return another()
  end
  state.migration = name
  if not is_closed(state) and state.phase ~= 'closing' then
    enter(state, 'copying')
  end
  traced[state.key] = { replica = replica, count = 0, channels = {}, keys = {} }
  return { state.phase or 'copying' }
end

-- Answers the number of channels with events since the last call, these, and the idempotency keys. An error if the
-- trace is lost, or another replica has taken it over.
function leaving.trace(state, _, replica)
  local traces = traced[state.key]
  if not traces or traces.replica ~= replica then
    return redis.error_reply('NOTRACE it is not known which channels have changed')
  end
  local names = { '' }
  for channel in pairs(traces.channels) do
    names[#names + 1] = channel
  end
  names[1] = tostring(#names - 1)
  for key in pairs(traces.keys) do
    names[#names + 1] = key
  end
  traced[state.key] = { replica = replica, count = 0, channels = {}, keys = {} }
  return names
end

-- Keeps events of all others out for some seconds, and ends the lease. So the caller, a recorder in sync, acquires it. It
-- takes over from a caller that has given no sign for a while. Answers whether ends wait for raw messages.
function leaving.close(state, _, replica)
  local is_first = state.phase ~= 'closing' or state.migrator ~= replica
  local is_held = state.phase == 'closing' and state.closing > CLOSING - GONE
  if is_closed(state) or (is_first and is_held) then
    return another()
  end
  enter(state, 'closing', string.format(' %s %.0f', replica, state.now + CLOSING))
  if is_first then
    end_lease(state.key, state.prefix)
    if run_part then
      redis.call('SPUBLISH', state.prefix .. RECORDED .. run_part, '~')
    end
  end
  return { tostring(redis.call('EXISTS', state.prefix .. ENDS)) }
end

-- From now on no event is appended here.
function leaving.commit(state, _, replica)
  if (state.phase ~= 'closing' and state.phase ~= 'closed') or state.migrator ~= replica then
    return another()
  end
  enter(state, 'closed', ' ' .. replica)
  traced[state.key] = nil
  return { 'closed' }
end

-- The target is open.
function leaving.leave(state)
  if not is_closed(state) then
    return another()
  end
  enter(state, 'moved')
  return { 'moved' }
end

-- Ends what `close` began.
function leaving.reopen(state, _, replica)
  if state.phase == 'closing' and state.migrator == replica then
    enter(state, 'copying')
  end
  return { 'copying' }
end

-- Ends the migration.
function leaving.abort(state)
  if is_closed(state) or state.phase == 'closing' then
    return redis.error_reply('CLOSED the events are moving or have moved, so the migration has to be completed')
  end
  redis.call('HDEL', state.key, 'migration')
  traced[state.key] = nil
  return { 'aborted' }
end

-- The steps at the target.
local arriving = {}

-- Takes copies from now on, and refuses gateways. Only if nothing is here. The name '-' is that of a migration that was
-- aborted, and has left nothing but itself.
function arriving.fill(state, name)
  if not state.phase and redis.call('EXISTS', state.key) == 1 then
    return redis.error_reply('NOTEMPTY this redis holds a deployment')
  end
  state.migration = name
  enter(state, 'filling')
  return { 'filling' }
end

-- The migration ends. Gateways stay out.
function arriving.forget(state)
  redis.call('HSET', state.key, 'migration', 'filling -')
  return { 'forgotten' }
end

-- Takes events from now on. After the name and the facts of the partition: 1 if raw messages may have been lost on the
-- way.
function arriving.open(state, _, args)
  local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
  for i, fact in ipairs(FACTS) do
    if args[i] ~= '' then
      redis.call('HSET', state.key, fact, args[i])
    end
  end
  -- For gateways, this server process has lost nothing.
  redis.call('HSET', state.key, 'run', run, 'base', args[1], 'filled', state.migration)
  redis.call('HDEL', state.key, 'migration')
  last_clock[state.key], handshaken[state.key] = args[1], nil
  if args[#FACTS + 1] == '1' then
    run_part = part_of(run)
    tick(load({ state.key }), '0-0', true)
  end
  return { 'open' }
end

-- How many replicas wait until the partition is open.
local function count_waiting(state)
  local count = 0
  for replica, last in pairs(waiting[state.key] or {}) do
    if last > state.now or state.now - last > CLOSING then
      waiting[state.key][replica] = nil
    else
      count = count + 1
    end
  end
  return tostring(count)
end

-- name of the migration, step, then its arguments. The steps of `leaving` have the name of a replica there.
--
-- Step `look` answers the phase, the name of its migration, and that of the migration by which the partition came here.
-- Then the session of its relay, 1 if raw messages were recorded, the number of replicas that wait, and the facts.
local function migrate(keys, args)
  local state, name, step = load(keys), args[1], args[2]
  if step == 'look' then
    local stored = redis.call('HMGET', state.key, 'filled', 'relayed', 'raw', unpack(FACTS))
    local answer = { state.phase or '', state.migration or '', stored[1] or '', stored[2] or '', stored[3] and '1' or '',
      count_waiting(state) }
    for i = 4, 3 + #FACTS do
      answer[#answer + 1] = stored[i] or ''
    end
    return answer
  end
  if leaving[step] then
    if step ~= 'copy' and state.migration ~= name then
      return another()
    end
    return leaving[step](state, name, args[3])
  end
  if state.phase and (state.phase ~= 'filling' or (state.migration ~= name and state.migration ~= '-')) then
    return another()
  end
  if step == 'fill' then
    return arriving.fill(state, name)
  elseif state.migration ~= name then
    -- A repeated call.
    return redis.call('HGET', state.key, 'filled') == name and { 'open' } or another()
  end
  return arriving[step](state, name, { unpack(args, 3) })
end

-- The ids of a list after this one, oldest first, and whether the list has this one.
local function ids_after(key, after)
  local newest_first, last, count, found = {}, -1, 64, false
  while not found do
    local part = redis.call('LRANGE', key, last - count + 1, last)
    for i = #part, 1, -1 do
      if part[i] == '-' or not is_older(after, part[i]) then
        found = part[i] == after
        part = {}
        break
      end
      newest_first[#newest_first + 1] = part[i]
    end
    if #part < count then
      break
    end
    last, count = last - count, count * 2
  end
  local ids = {}
  for i = #newest_first, 1, -1 do
    ids[#ids + 1] = newest_first[i]
  end
  return ids, found
end

-- Without a channel: '' and the time since when. Answers the digests of channels that began since then with their times,
-- and value and time to live of each key after those of the partition.
local function export_rest(keys, since)
  local prefix = string.sub(keys[1], 1, -1 - #CLOCK)
  local values = {}
  for i = 3, #keys do
    values[#values + 1] = redis.call('GET', keys[i]) or ''
    values[#values + 1] = tostring(redis.call('PTTL', keys[i]))
  end
  return { redis.call('ZRANGEBYSCORE', prefix .. PAST, since, '+inf', 'WITHSCORES'), values }
end

-- channel, newest entry and newest id that the target has, entries at most, bytes at most
--
-- Answers the times to live of its entries and its ids, 1 if there is more, 1 if the ids are a whole list, the ids, and
-- the entries. Without the last entries there are no ids, so a target that has the newest id has all entries.
local function export(keys, args)
  if args[1] == '' then
    return export_rest(keys, args[2])
  end
  local prefix = string.sub(keys[1], 1, -1 - #CLOCK)
  local log, list = prefix .. LOG .. args[1], prefix .. IDS .. args[1]
  local function newer(than)
    return { 'XRANGE', log, than, '+' }
  end
  local entries, more = read(newer('(' .. args[2]), newer, 1, tonumber(args[4]), tonumber(args[5]))
  local ids, found = {}, false
  if not more and args[3] ~= '0-0' then
    ids, found = ids_after(list, args[3])
  end
  if not more and not found then
    ids = redis.call('LRANGE', list, 0, -1)
  end
  return { redis.call('PTTL', log), redis.call('PTTL', list), more and 1 or 0, found and 0 or 1, ids, entries }
end

-- name of the migration, '', count of digests, then time and digest of each; then value and time to live of each key
-- after those of the partition
local function import_rest(keys, args)
  local prefix = string.sub(keys[1], 1, -1 - #CLOCK)
  local count = tonumber(args[3])
  for i = 4, 2 + 2 * count, 2 do
    redis.call('ZADD', prefix .. PAST, args[i], args[i + 1])
  end
  for i = 3, #keys do
    local at = 4 + 2 * count + 2 * (i - 3)
    redis.call('SET', keys[i], args[at], 'PX', args[at + 1])
  end
  return ''
end

-- name of the migration, channel, times to live of its entries and its ids, 1 if the ids are a whole list, count of ids,
-- the ids; then per entry: id, count of its words, the words
--
-- Ids and entries that are here already are left out, so a repeated call changes nothing. Answers the newest entry and
-- the newest id that are here, 0-0 if there are none.
local function import(keys, args)
  local state = load(keys)
  if state.phase ~= 'filling' or state.migration ~= args[1] then
    return another()
  elseif args[2] == '' then
    return import_rest(keys, args)
  end
  local log, list = state.prefix .. LOG .. args[2], state.prefix .. IDS .. args[2]
  local count = tonumber(args[6])
  if args[5] == '1' and count > 0 then
    redis.call('DEL', list)
  end
  local last = redis.call('LINDEX', list, -1)
  for i = 7, 6 + count do
    if not last or is_older(last, args[i]) then
      redis.call('RPUSH', list, args[i])
    end
  end
  local newest = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  newest = newest and newest[1] or '0-0'
  local at = 7 + count
  while at <= #args do
    local id, words = args[at], tonumber(args[at + 1])
    if is_older(newest, id) then
      redis.call('XADD', log, id, unpack(args, at + 2, at + 1 + words))
      newest = id
    end
    at = at + 2 + words
  end
  for key, ttl in pairs({ [log] = args[3], [list] = args[4] }) do
    if tonumber(ttl) > 0 then
      redis.call('PEXPIRE', key, ttl)
    end
  end
  last = redis.call('LINDEX', list, -1)
  return { newest, last and last ~= '-' and last or '0-0' }
end

-- replica, watermark, session, number; then channels and payloads, a lost message as in `record`
--
-- Raw messages that were published at the Redis that the deployment has left. Number 0 begins the session, then without
-- messages: 1 follows if messages may have been lost since the session before. '-' ends the session in order. A repeated
-- call is carried out once.
local function relay_all(keys, args)
  local state, session, number = load(keys), args[3], tonumber(args[4])
  local refused = is_shut(state) or not_ready(keys, args[1])
  if refused then
    return refused
  end
  local stored = redis.call('HGET', state.key, 'relayed') or ''
  local own = tonumber(string.match(stored, session .. ' (%d+)$'))
  if number == 0 and args[5] == '1' then
    tick(state, args[2], true)
  elseif number > 0 and not own then
    return redis.error_reply('FENCED another migrate command relays')
  elseif number > 0 and number <= own then
    return 0
  else
    tick(state, args[2])
  end
  local is_end = args[5] == '-'
  for i = 5, #args - 1, 2 do
    local channel, payload = args[i], args[i + 1]
    -- A key that another program wrote to must not block the messages after this one.
    if string.byte(channel) == 0 then
      pcall(lose, state, string.sub(channel, 2))
    else
      local ok, id = pcall(append, state, channel, payload)
      if not ok or type(id) == 'table' then
        live(state, channel, '-', '-', payload)
      end
    end
  end
  redis.call('HSET', state.key, 'relayed', (is_end and '- ' or '') .. session .. string.format(' %.0f', number))
  store(state)
  return 1
end
