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
-- But for one thing: when a migration arrives, libvirt gives a hook what the hook before it printed. Those
-- of oVirt and CloudStack print what an XML library writes: a declaration in front, attributes in double
-- quotes. That is read as well. Were it a lie, prepare asks again about what libvirt made of it.
--
-- Kept to what SQLite 3.34 knows (RHEL 9): no MATERIALIZED, no unixepoch(), no ->>.
WITH
  -- LIMIT -1, here and below, keeps SQLite from merging the steps, which would repeat each one's work
  -- wherever its columns are used. Everything is written once: compiling it is most of a decision.
  written AS (
    SELECT
      operation,
      now,
      CASE
        WHEN operation = 'migrate' AND substr(xml, 1, 6) = '<?xml '
          THEN substr(xml, instr(xml, '?>') + 2)
        ELSE xml
      END AS xml
    FROM temp.request
    LEFT JOIN temp.document ON (SELECT count(*) FROM temp.document) = 1
    LIMIT -1
  ),
  domain AS (
    SELECT
      operation,
      now,
      xml,
      substr(xml, 1, instr(xml, '<uuid>') - 1) AS head,
      lower(substr(xml, instr(xml, '<uuid>') + 6, 36)) AS uuid,
      -- The first tag has no value of anybody's choice.
      operation = 'migrate' AND instr(substr(xml, 1, instr(xml, '>')), '="') > 0 AS in_double_quotes
    FROM written
    LIMIT -1
  )
SELECT
  CASE
    WHEN (SELECT value FROM meta WHERE key = 'decision') IS NOT '2'
      THEN 'undecided the database is of decision format '
        || coalesce((SELECT value FROM meta WHERE key = 'decision'), 'none') || ', this hook reads 2'
    WHEN xml IS NULL OR xml = '' THEN 'undecided libvirt gave no domain XML'
    WHEN substr(ltrim(xml, char(9, 10, 13, 32)), 1, 7) <> '<domain'
      OR substr(rtrim(xml, char(9, 10, 13, 32)), -9) <> '</domain>'
      THEN 'undecided the domain XML is not whole'
    WHEN head = '' OR substr(xml, length(head) + 43, 7) <> '</uuid>'
      OR length(head) - length(replace(head, '<', ''))
        <> CASE WHEN instr(head, '<name>') BETWEEN 1 AND instr(head, '</name>') THEN 3 ELSE 1 END
      OR uuid NOT GLOB replace('44-4-4-4-444', '4', '[0-9a-f][0-9a-f][0-9a-f][0-9a-f]')
      THEN 'undecided the domain XML has no UUID'
    -- The canary: UUIDs that are always refused, so that doctor can prove the hook armed.
    WHEN substr(uuid, 1, 24) = 'b00710c4-0000-4000-8000-'
      THEN 'refuse canary ' || uuid || ' - canary'
    ELSE coalesce(
      (
        WITH
          -- Splitting through JSON is linear in the length of the XML; a recursive substr() is
          -- quadratic. White space in an attribute is a blank to whoever parses XML; libvirt writes
          -- what it was.
          piece AS (
            SELECT substr(value, 1, instr(value || '</source>', '</source>') - 1) AS text
            FROM json_each('[' || replace(json_quote(replace(replace(replace(
              -- Here it is done once; what a later step asks of the domain it asks for each tag.
              CASE WHEN in_double_quotes THEN replace(replace(xml, '''', '&apos;'), '"', '''') ELSE xml END,
              char(9), ' '), char(10), ' '), char(13), ' ')), '<source ', '","') || ']')
            WHERE key > 0
            LIMIT -1
          ),
          tag AS (
            SELECT
              substr(text, 1, instr(text || '>', '>') - 1) AS source,
              substr(text, instr(text || '<host ', '<host ')) AS host
            FROM piece
            LIMIT -1
          ),
          -- a='1' b='2' split at the quotes, which no value contains: each value stands after its
          -- name. libvirt writes a handful; only the first 16 are looked at, so that hostile metadata
          -- costs no quadratic time. A host's name comes before its port.
          split AS (
            SELECT replace(json_array(source || ' ' || substr(host, 1, instr(host || '>', '>') - 1)),
              '''', '","') AS parts
            FROM tag
            LIMIT -1
          ),
          source AS (
            SELECT (
              SELECT json_group_object(ltrim(json_extract(parts, '$[' || (key - 1) || ']')), value)
              FROM json_each(parts)
              WHERE key % 2 = 1 AND key < 32
            ) AS attributes
            FROM split
            LIMIT -1
          ),
          -- The keys of held_disk, as lockdb.disks writes them.
          disk AS (
            SELECT
              coalesce(
                'path:' || nullif(json_extract(attributes, '$.file='), ''),
                'path:' || nullif(json_extract(attributes, '$.dev='), ''),
                'volume:' || json_extract(attributes, '$.pool=')
                  || '/' || nullif(json_extract(attributes, '$.volume='), ''),
                'net:' || nullif(json_extract(attributes, '$.protocol='), '')
                  || ':' || coalesce(json_extract(attributes, '$.name='), '')
                  || CASE
                    WHEN json_extract(attributes, '$.protocol=') IN ('rbd', 'iscsi') THEN ''
                    ELSE '@' || coalesce(
                      json_extract(attributes, '$.socket='),
                      json_extract(attributes, '$."<host name="')
                        || ':' || coalesce(json_extract(attributes, '$.port='), ''),
                      '')
                  END
              ) AS source
            FROM source
            LIMIT -1
          ),
          held AS (
            SELECT uuid AS instance
            UNION ALL
            SELECT held_disk.instance
            FROM disk
            JOIN held_disk ON held_disk.source = replace(replace(replace(replace(replace(disk.source,
              '&apos;', ''''), '&quot;', '"'), '&lt;', '<'), '&gt;', '>'), '&amp;', '&')
          )
        SELECT
          'refuse ' || hold.id || ' ' || uuid || ' '
            || hex(substr(head, instr(head, '<name>') + 6,
              min(instr(head, '</name>') - instr(head, '<name>') - 6, 255)))
            || ' ' || hold.notice
        FROM held
        JOIN hold ON hold.instance = held.instance AND hold.released_at IS NULL
        WHERE (hold.until IS NULL OR hold.until > domain.now)
          AND (
            -- A hold that says which operations it blocks lets the others through.
            coalesce(instr(',' || hold.blocks || ',', ',start,'), 1)
              -- A state lock keeps the state: what ran may run again.
              AND (hold.kind <> 'state_lock' OR hold.was_running = 0)
            OR domain.operation = 'migrate' AND instr(',' || hold.blocks || ',', ',migrate,')
          )
          AND NOT EXISTS (
            SELECT 1
            FROM permit
            WHERE permit.instance = uuid
              -- An arriving migration asks as migrate, then as prepare and start: its permit covers
              -- all three.
              AND permit.operation
                IN ('migrate', CASE WHEN domain.operation = 'migrate' THEN 'migrate' ELSE 'start' END)
              AND permit.revoked_at IS NULL
              AND permit.granted_at <= domain.now
              AND permit.until > domain.now
          )
        ORDER BY hold.kind, hold.placed_at, hold.id
        LIMIT 1
      ),
      'allow')
  END
FROM domain;
