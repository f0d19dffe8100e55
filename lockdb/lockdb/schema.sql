-- For reading. 'make schema' writes it from migrations.py.
CREATE TABLE "_sqlite_migrations" (
   "id" INTEGER PRIMARY KEY,
   "migration_set" TEXT,
   "name" TEXT,
   "applied_at" TEXT
);
CREATE UNIQUE INDEX "idx__sqlite_migrations_migration_set_name"
    ON "_sqlite_migrations" ("migration_set", "name");
CREATE TABLE meta (
  key TEXT PRIMARY KEY,
  value TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE hold (
  id TEXT PRIMARY KEY,
  instance TEXT NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN ('boot_lock', 'state_lock')),
  source TEXT NOT NULL,
  reason TEXT NOT NULL CHECK (reason <> ''),
  notice TEXT NOT NULL CHECK (notice <> ''),
  "case" TEXT NOT NULL,
  on_running TEXT NOT NULL,
  grace INTEGER NOT NULL,
  isolate INTEGER NOT NULL CHECK (isolate IN (0, 1)),
  was_running INTEGER CHECK (was_running IN (0, 1)),
  placed_at INTEGER NOT NULL,
  placed_by TEXT NOT NULL,
  until INTEGER,
  released_at INTEGER,
  released_by TEXT,
  release_reason TEXT
, ref TEXT, blocks TEXT CHECK (blocks <> ''), retain_until INTEGER CHECK (retain_until IS NULL OR until IS NULL), retention TEXT
  CHECK (retention IN ('governance', 'compliance'))
  CHECK ((retention IS NULL) = (retain_until IS NULL)), overridden INTEGER NOT NULL DEFAULT 0 CHECK (overridden IN (0, 1)), preserve INTEGER NOT NULL DEFAULT 0 CHECK (preserve IN (0, 1))) WITHOUT ROWID;
CREATE INDEX hold_active ON hold (instance) WHERE released_at IS NULL;
CREATE INDEX hold_instance ON hold (instance, placed_at);
CREATE TABLE held_disk (
  source TEXT NOT NULL,
  instance TEXT NOT NULL,
  PRIMARY KEY (source, instance)
) WITHOUT ROWID;
CREATE INDEX held_disk_instance ON held_disk (instance);
CREATE TABLE refusal (
  instance TEXT NOT NULL,
  operation TEXT NOT NULL,
  hold TEXT NOT NULL,
  name TEXT NOT NULL,
  first_at INTEGER NOT NULL,
  last_at INTEGER NOT NULL,
  count INTEGER NOT NULL,
  PRIMARY KEY (instance, operation, hold)
) WITHOUT ROWID;
CREATE TABLE journal (
  seq INTEGER PRIMARY KEY,
  entry TEXT NOT NULL,
  hash TEXT NOT NULL,
  at INTEGER AS (json_extract(entry, '$.at')),
  event TEXT AS (json_extract(entry, '$.event')),
  instance TEXT AS (json_extract(entry, '$.instance'))
);
CREATE INDEX journal_instance ON journal (instance, seq);
CREATE TRIGGER journal_keeps_rows BEFORE DELETE ON journal
BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
CREATE TRIGGER journal_keeps_text BEFORE UPDATE ON journal
BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
CREATE TABLE enforcement (
  hold TEXT NOT NULL,
  fence TEXT NOT NULL,
  instance TEXT NOT NULL,
  state TEXT NOT NULL,
  detail TEXT NOT NULL,
  since INTEGER NOT NULL,
  at INTEGER NOT NULL,
  next_try INTEGER,
  PRIMARY KEY (hold, fence)
) WITHOUT ROWID;
CREATE INDEX enforcement_instance ON enforcement (instance)
;
CREATE UNIQUE INDEX hold_ref ON hold (source, ref) WHERE released_at IS NULL AND ref IS NOT NULL;
CREATE TABLE source (
  name TEXT PRIMARY KEY,
  turn INTEGER NOT NULL,
  revision TEXT NOT NULL,
  tried_at INTEGER,
  read_at INTEGER,
  whole_at INTEGER,
  error TEXT NOT NULL,
  error_since INTEGER,
  faults TEXT NOT NULL,
  vanished TEXT NOT NULL,
  ended TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE waiting (
  hold TEXT PRIMARY KEY,
  source TEXT NOT NULL,
  evidence TEXT NOT NULL,
  change TEXT NOT NULL,
  since INTEGER NOT NULL
, override INTEGER NOT NULL DEFAULT 0, kept INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID
;
CREATE TABLE permit (
  id TEXT PRIMARY KEY,
  instance TEXT NOT NULL,
  operation TEXT NOT NULL CHECK (operation <> ''),
  reason TEXT NOT NULL CHECK (reason <> ''),
  granted_at INTEGER NOT NULL,
  granted_by TEXT NOT NULL,
  until INTEGER NOT NULL,
  revoked_at INTEGER,
  revoked_by TEXT
) WITHOUT ROWID;
CREATE INDEX permit_instance ON permit (instance);
CREATE TRIGGER hold_is_kept BEFORE DELETE ON hold
WHEN OLD.retain_until IS NOT NULL
BEGIN SELECT RAISE(ABORT, 'the hold is retained'); END;
CREATE TABLE preserved (
  instance TEXT NOT NULL,
  path TEXT NOT NULL,
  role TEXT NOT NULL CHECK (role IN ('disk', 'backing', 'directory', 'device')),
  inode INTEGER NOT NULL,
  link TEXT NOT NULL,
  had_flag INTEGER NOT NULL CHECK (had_flag IN (0, 1)),
  stage TEXT NOT NULL CHECK (stage IN ('intended', 'kept', 'left', 'ended')),
  discard INTEGER NOT NULL CHECK (discard IN (0, 1)),
  since INTEGER NOT NULL,
  size INTEGER,
  written_ns INTEGER,
  hashed INTEGER NOT NULL,
  hash_state BLOB,
  sha256 TEXT,
  digested_at INTEGER,
  PRIMARY KEY (instance, path)
) WITHOUT ROWID;
CREATE TRIGGER hold_preserves BEFORE UPDATE ON hold
WHEN OLD.released_at IS NULL AND OLD.preserve > NEW.preserve AND OLD.retain_until
  > CAST(ifnull((SELECT value FROM meta WHERE key = 'witness'), 0) AS INTEGER)
BEGIN SELECT RAISE(ABORT, 'the hold is retained'); END;
CREATE TRIGGER hold_is_retained BEFORE UPDATE ON hold
WHEN OLD.released_at IS NULL AND OLD.retain_until
  > CAST(ifnull((SELECT value FROM meta WHERE key = 'witness'), 0) AS INTEGER)
BEGIN
  SELECT RAISE(ABORT, 'the hold is retained')
  WHERE NOT (NEW.released_at IS NULL OR (OLD.retention = 'governance' AND NEW.overridden))
    OR NEW.id <> OLD.id
    OR NEW.instance <> OLD.instance
    OR NEW.source <> OLD.source
    OR NEW.kind <> OLD.kind
    OR NEW.blocks IS NOT OLD.blocks
    OR (OLD.was_running = 0 AND NEW.was_running IS NOT 0)
    OR NEW.retain_until IS NULL
    OR NEW.retain_until < OLD.retain_until
    OR (OLD.retention = 'compliance' AND NEW.retention <> 'compliance');
END;
CREATE TRIGGER hold_is_not_replaced BEFORE INSERT ON hold
WHEN EXISTS (SELECT 1 FROM hold WHERE id = NEW.id AND retain_until IS NOT NULL)
  OR EXISTS (SELECT 1 FROM hold WHERE source = NEW.source AND ref = NEW.ref
    AND released_at IS NULL AND NEW.released_at IS NULL AND retain_until IS NOT NULL)
BEGIN SELECT RAISE(ABORT, 'the hold is retained'); END;
CREATE TRIGGER hold_is_not_displaced BEFORE UPDATE OF id, source, ref, released_at ON hold
WHEN EXISTS (SELECT 1 FROM hold WHERE id = NEW.id AND id <> OLD.id AND retain_until IS NOT NULL)
  OR EXISTS (SELECT 1 FROM hold WHERE source = NEW.source AND ref = NEW.ref AND id <> OLD.id
    AND released_at IS NULL AND NEW.released_at IS NULL AND retain_until IS NOT NULL)
BEGIN SELECT RAISE(ABORT, 'the hold is retained'); END;
