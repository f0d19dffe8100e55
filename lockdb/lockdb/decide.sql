-- May this domain start? The hook and Python both run exactly this text.
--
-- In:   temp.request (operation TEXT, now INTEGER)   one row; now in Unix seconds
--       temp.document (xml TEXT)                     one row; the domain as libvirt formats it
-- Out:  one row, one column, one of
--       allow
--       refuse HOLD INSTANCE HEXNAME NOTICE          HEXNAME: the domain's name, UTF-8 in hexadecimal
--       undecided WHY                                no answer; the caller refuses the start
--
-- libvirt formats the XML itself in the operations that decide: elements in a fixed order (name, then
-- uuid), attributes in single quotes, the five XML characters escaped. What deviates from that before
-- the uuid was not written by libvirt and is not believed.
--
-- Kept to what SQLite 3.34 knows (RHEL 9): no MATERIALIZED, no unixepoch(), no ->>.
WITH
  input AS (
    SELECT
      operation,
      now,
      CASE WHEN (SELECT count(*) FROM temp.document) = 1 THEN (SELECT xml FROM temp.document) END AS xml
    FROM temp.request
  ),
  domain AS (
    SELECT
      operation,
      now,
      xml,
      substr(xml, 1, instr(xml, '<uuid>') - 1) AS head,
      lower(substr(xml, instr(xml, '<uuid>') + 6, 36)) AS uuid,
      substr(xml, instr(xml, '<uuid>') + 42, 7) AS after_uuid
    FROM input
  ),
  fault AS (
    SELECT
      CASE
        WHEN (SELECT value FROM meta WHERE key = 'decision') IS NOT '1'
          THEN 'the database is of decision format '
            || coalesce((SELECT value FROM meta WHERE key = 'decision'), 'none') || ', this hook reads 1'
        WHEN xml IS NULL OR xml = '' THEN 'libvirt gave no domain XML'
        WHEN substr(ltrim(xml, char(9, 10, 13, 32)), 1, 7) <> '<domain'
          OR substr(rtrim(xml, char(9, 10, 13, 32)), -9) <> '</domain>'
          THEN 'the domain XML is not whole'
        WHEN instr(xml, '<uuid>') = 0 OR after_uuid <> '</uuid>' OR length(head) - length(replace(head, '<', ''))
            <> CASE WHEN instr(head, '<name>') BETWEEN 1 AND instr(head, '</name>') THEN 3 ELSE 1 END
          OR length(uuid) <> 36 OR trim(uuid, '0123456789abcdef-') <> '' OR replace(uuid, '-', '') <> substr(uuid, 1, 8)
            || substr(uuid, 10, 4) || substr(uuid, 15, 4) || substr(uuid, 20, 4) || substr(uuid, 25, 12)
          THEN 'the domain XML has no UUID'
      END AS why
    FROM domain
  ),
  -- White space in an attribute is a blank to whoever parses XML; libvirt writes what it was.
  line AS (
    SELECT replace(replace(replace(xml, char(9), ' '), char(10), ' '), char(13), ' ') AS text FROM domain
  ),
  -- Splitting through JSON is linear in the length of the XML; a recursive substr() is quadratic.
  -- LIMIT -1, here and below, keeps SQLite from merging the steps, which would repeat each one's work
  -- wherever its columns are used.
  piece AS (
    SELECT key AS number, substr(value, 1, instr(value || '</source>', '</source>') - 1) AS text
    FROM line, json_each('[' || replace(json_quote(text), '<source ', '","') || ']')
    WHERE key > 0
    LIMIT -1
  ),
  tag AS (
    SELECT number, '' AS element, json_quote(substr(text, 1, instr(text || '>', '>') - 1)) AS attributes
    FROM piece
    UNION ALL
    SELECT number, 'host ', json_quote(substr(host, 1, instr(host || '>', '>') - 1))
    FROM (SELECT number, substr(text, instr(text, '<host ') + 6) AS host FROM piece WHERE instr(text, '<host ') > 0)
    LIMIT -1
  ),
  -- a='1' b='2' split at the quotes, which no value contains: each value stands after its name. libvirt
  -- writes a handful; only the first 16 are looked at, so that hostile metadata costs no quadratic time.
  split AS (
    SELECT number, element, '["' || replace(substr(attributes, 2, length(attributes) - 2), '''', '","') || '"]' AS parts
    FROM tag
    LIMIT -1
  ),
  attribute AS (
    SELECT number, element || ltrim(json_extract(parts, '$[' || (key - 1) || ']')) AS name, value
    FROM split, json_each(parts)
    WHERE key % 2 = 1 AND key < 32
    LIMIT -1
  ),
  source AS (
    SELECT
      max(CASE name WHEN 'file=' THEN value END) AS file,
      max(CASE name WHEN 'dev=' THEN value END) AS dev,
      max(CASE name WHEN 'pool=' THEN value END) AS pool,
      max(CASE name WHEN 'volume=' THEN value END) AS volume,
      max(CASE name WHEN 'protocol=' THEN value END) AS protocol,
      coalesce(max(CASE name WHEN 'name=' THEN value END), '') AS name,
      coalesce(max(CASE name WHEN 'host socket=' THEN value END),
        max(CASE name WHEN 'host name=' THEN value END) || ':'
          || coalesce(max(CASE name WHEN 'host port=' THEN value END), ''), '') AS host
    FROM attribute
    GROUP BY number
    LIMIT -1
  ),
  -- The keys of held_disk, as lockdb.disks writes them.
  disk AS (
    SELECT
      CASE
        WHEN file <> '' THEN 'path:' || file
        WHEN dev <> '' THEN 'path:' || dev
        WHEN volume <> '' THEN 'volume:' || pool || '/' || volume
        WHEN protocol IN ('rbd', 'iscsi') THEN 'net:' || protocol || ':' || name
        WHEN protocol <> '' THEN 'net:' || protocol || ':' || name || '@' || host
      END AS source
    FROM source
    LIMIT -1
  ),
  held AS (
    SELECT (SELECT uuid FROM domain) AS instance
    UNION
    SELECT held_disk.instance
    FROM disk
    JOIN held_disk ON held_disk.source = replace(replace(replace(replace(replace(disk.source,
      '&apos;', ''''), '&quot;', '"'), '&lt;', '<'), '&gt;', '>'), '&amp;', '&')
  ),
  refusal AS (
    SELECT hold.id, hold.notice
    FROM held
    JOIN hold ON hold.instance = held.instance AND hold.released_at IS NULL
    WHERE (hold.until IS NULL OR hold.until > (SELECT now FROM domain))
      -- A state lock keeps the state: what ran may run again. Every other hold refuses.
      AND NOT (hold.kind = 'state_lock' AND coalesce(hold.was_running, 1) = 1)
      AND NOT EXISTS (
        SELECT 1
        FROM permit, domain
        WHERE permit.instance = domain.uuid
          -- An arriving migration asks as migrate, then as prepare and start: its permit covers all three.
          AND permit.operation IN ('migrate', CASE WHEN domain.operation = 'migrate' THEN 'migrate' ELSE 'start' END)
          AND permit.revoked_at IS NULL
          AND permit.granted_at <= domain.now
          AND permit.until > domain.now
      )
    ORDER BY hold.kind, hold.placed_at, hold.id
    LIMIT 1
  )
SELECT
  CASE
    WHEN fault.why IS NOT NULL THEN 'undecided ' || fault.why
    -- The canary: UUIDs that are always refused, so that doctor can prove the hook armed.
    WHEN substr(domain.uuid, 1, 24) = 'b00710c4-0000-4000-8000-'
      THEN 'refuse canary ' || domain.uuid || ' - canary'
    ELSE coalesce(
      (SELECT 'refuse ' || id || ' ' || domain.uuid || ' '
        || hex(substr(head, instr(head, '<name>') + 6, min(instr(head, '</name>') - instr(head, '<name>') - 6, 255)))
        || ' ' || notice FROM refusal),
      'allow')
  END
FROM domain, fault;
