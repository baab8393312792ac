-- The role that searches run as sees one tenant, and writes nothing. Roles
-- belong to the server: the schema needs it made before, and so does a dump of
-- the schema.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'thalweg_reader') THEN
        CREATE ROLE thalweg_reader NOLOGIN;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL; -- another database's migration was quicker; roles belong to the server
END $$;
-- From version 16 on, who made a role may grant it but not yet take it on.
DO $$
BEGIN
    IF NOT pg_has_role(current_user, 'thalweg_reader',
                       CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END)
    THEN
        GRANT thalweg_reader TO CURRENT_USER;
    END IF;
END $$;
