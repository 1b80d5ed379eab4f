-- The handshake of a replica, which shows whether events were lost.

-- A server gets another replication id when it becomes a copy, and again when it is promoted. Redis Enterprise allows no
-- INFO in functions. There a retired server accepts only a handshake with a later number.
local function replication_id()
  local info = redis.pcall('INFO', 'replication')
  return type(info) == 'string' and string.match(info, 'master_replid:(%x+)') or ''
end

local process_name

-- a name for this server process, if it has none
--
-- Answers its name, for replicas that do not get a run id from INFO. A restart forgets it, and so does FUNCTION LOAD.
local function process(_, args)
  refuse_backends()
  process_name = process_name or args[1]
  return process_name
end

-- number of the failover or move by which other servers took partitions over, prefixes of these partitions
--
-- From now on this server refuses appends and reads there until a replica completes the handshake with it. It accepts a
-- handshake only with the number of a later failover or move, or after it has been a copy and was promoted. Otherwise
-- replicas that have not noticed the failover would continue to use it.
--
-- Answers this server's run id, and for each partition the id of the newest event that it has, and its clock; '' if it
-- does not know. If the other server's clock is not behind that event, it has all events of this one: each append moves
-- the clock in the same step.
local function retire(_, args)
  refuse_backends()
  local epoch, id = tonumber(args[1]), replication_id()
  local answer = { this_run or '' }
  for i = 2, #args do
    local key = args[i] .. CLOCK
    if not retired[key] or retired[key].epoch < epoch then
      retired[key], handshaken[key] = { epoch = epoch, id = id }, nil
    end
    answer[#answer + 1] = newest_event[key] or ''
    answer[#answer + 1] = last_clock[key] or ''
  end
  return answer
end

-- replica, run id, watermark, run id under which the watermark was seen, the present time by the clock of
-- the server that gave out the watermark; 1 if this server ran beside that one; number of the failover by which this
-- server is the master; run id of the server from which it took the partition over, and that one's newest event and
-- clock; 1 if this server is a node of a cluster
--
-- A server that ran beside the master has replaced it. Replication is asynchronous: the master's last writes may be
-- lost without a trace if no replica has seen them.
--
-- The first replica that completes a handshake with a server that has lost events has not always seen the newest ids.
-- If the server's time is behind, ids continue from the time given here and a little more, not from the watermark. All
-- other replicas' watermarks are below that, so their clients do not see ids go back.
--
-- `base` is the clock when a replica first reached this server process. Newer ids that a replica saw under an earlier
-- process have been lost.
--
-- All recorders that were subscribed to the process before are out of sync here. Its in-sync marks and its lease are
-- deleted. So the first recorder that subscribes to this process records, and does not leave its messages to a later
-- one. If a partition has moved from another node of the cluster with all its events, the lease is given to its last
-- holder, which may continue to record.
local function handshake(keys, args)
  local replica, run, watermark, watermark_run, expected, overlaps, epoch = unpack(args)
  local left_run, left_event, left_clock = args[8], args[9], args[10]
  expected = tonumber(expected)
  local known = retired[keys[1]]
  if known and tonumber(epoch) <= known.epoch and replication_id() == known.id then
    return redis.error_reply('RETIRED another redis is the master')
  end
  local before = load(keys)
  local refused = (before.phase == 'filling' or is_closed(before)) and is_shut(before)
  if refused then
    waiting[keys[1]] = waiting[keys[1]] or {}
    waiting[keys[1]][replica] = before.now
    return refused
  end
  retired[keys[1]] = nil
  local stored = redis.call('HMGET', keys[1], 'run', 'base')
  local is_new = runs[keys[1]] ~= run
  this_run, runs[keys[1]], in_cluster = run, run, args[11] == '1'
  run_part = part_of(run)
  local state = load(keys)
  local base, lost = stored[2], false
  if state.ms then
    local watermark_ms, watermark_seq = parse(watermark)
    if stored[1] ~= run then
      newest_event[keys[1]] = clock(state)
      -- The server before refuses all calls, so its clock is final. Clients may have seen it.
      local has_all = stored[1] == left_run and not is_behind(state, left_event)
      if has_all and is_behind(state, left_clock) then
        state.ms, state.seq = parse(left_clock)
      elseif not has_all and left_clock ~= '' and is_older(watermark, left_clock) then
        watermark = left_clock
      end
      base, lost = clock(state), not has_all and (watermark == '0-0' or overlaps == '1')
      -- This process may have been the master before.
      recording[keys[1]], interrupted_at[keys[1]], listeners[keys[1]] = nil, nil, nil
      appended[keys[1]], lost_at[keys[1]], raw[keys[1]] = nil, nil, nil
      carried[keys[1]] = nil
      if stored[1] then
        redis.call('DEL', state.prefix .. IN_SYNC, state.prefix .. LEASE)
      end
      local holder = has_all and in_cluster and redis.call('HGET', keys[1], 'holder')
      if holder then
        redis.call('SET', state.prefix .. LEASE, holder, 'PX', LEASED)
        carried[keys[1]], recording[keys[1]] = true, true
      end
    end
    local base_ms, base_seq = parse(base)
    -- Once is enough: a replica that has seen no id newer than the horizon is already below it.
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
  newest_event[keys[1]] = newest_event[keys[1]] or clock(state)
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
