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
        WHEN instr(xml, '<uuid>') = 0 OR after_uuid <> '</uuid>' OR instr(head, '<!') > 0
          OR length(uuid) <> 36 OR trim(uuid, '0123456789abcdef-') <> '' OR replace(uuid, '-', '') <> substr(uuid, 1, 8)
            || substr(uuid, 10, 4) || substr(uuid, 15, 4) || substr(uuid, 20, 4) || substr(uuid, 25, 12)
          THEN 'the domain XML has no UUID'
      END AS why
    FROM domain
  ),
  -- Splitting through JSON is linear in the length of the XML; a recursive substr() is quadratic.
  piece AS (
    SELECT substr(value, 1, instr(value || '</source>', '</source>') - 1) AS text
    FROM domain, json_each('[' || replace(json_quote(xml), '<source ', '","') || ']')
    WHERE key > 0
  ),
  tag AS (
    SELECT
      json_quote(rtrim(substr(text, 1, instr(text || '>', '>') - 1), '/ ')) AS source,
      json_quote(rtrim(substr(host, 1, instr(host || '>', '>') - 1), '/ ')) AS host
    FROM (SELECT text, substr(text, instr(text || '<host ', '<host ') + 6) AS host FROM piece)
  ),
  -- "a='1' b='2'" becomes {"a":"1","b":"2"}; what libvirt did not format becomes no JSON.
  object AS (
    SELECT
      '{' || replace(replace(substr(source, 1, length(source) - 2), '=''', '":"'), ''' ', '","') || '"}' AS source,
      '{' || replace(replace(substr(host, 1, length(host) - 2), '=''', '":"'), ''' ', '","') || '"}' AS host
    FROM tag
  ),
  -- The keys of held_disk, as lockdb.disks writes them.
  disk AS (
    SELECT
      CASE
        WHEN json_extract(source, '$.file') <> '' THEN 'path:' || json_extract(source, '$.file')
        WHEN json_extract(source, '$.dev') <> '' THEN 'path:' || json_extract(source, '$.dev')
        WHEN json_extract(source, '$.volume') <> ''
          THEN 'volume:' || json_extract(source, '$.pool') || '/' || json_extract(source, '$.volume')
        WHEN json_extract(source, '$.protocol') IN ('rbd', 'iscsi')
          THEN 'net:' || json_extract(source, '$.protocol') || ':' || json_extract(source, '$.name')
        WHEN json_extract(source, '$.protocol') <> ''
          THEN 'net:' || json_extract(source, '$.protocol') || ':' || coalesce(json_extract(source, '$.name'), '') || '@'
            || CASE WHEN json_valid(host) THEN coalesce(json_extract(host, '$.socket'),
              json_extract(host, '$.name') || ':' || coalesce(json_extract(host, '$.port'), ''), '') ELSE '' END
      END AS source
    FROM object
    WHERE json_valid(source)
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
