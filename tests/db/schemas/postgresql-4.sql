-- The tables of schema version 4, as parsl-balsam made them.

CREATE TABLE schema_version (
    version INTEGER NOT NULL
);

CREATE TABLE workflows (
    id BIGSERIAL NOT NULL,
    name TEXT NOT NULL,
    label TEXT NOT NULL,
    created_at FLOAT NOT NULL,
    current_run BIGINT,
    last_finish BIGINT DEFAULT 0 NOT NULL,
    pause_count INTEGER DEFAULT 0 NOT NULL,
    pause_until FLOAT,
    pause_why TEXT,
    PRIMARY KEY (id),
    UNIQUE (name, label)
);

CREATE TABLE functions (
    digest BYTEA NOT NULL,
    body BYTEA NOT NULL,
    PRIMARY KEY (digest)
);

CREATE TABLE arguments (
    task_id BIGINT NOT NULL,
    payload BYTEA NOT NULL,
    PRIMARY KEY (task_id)
);

CREATE TABLE results (
    task_id BIGINT NOT NULL,
    payload BYTEA NOT NULL,
    PRIMARY KEY (task_id)
);

CREATE TABLE attempts (
    task_id BIGINT NOT NULL,
    number INTEGER NOT NULL,
    block_id BIGINT NOT NULL,
    host TEXT,
    placement TEXT,
    claimed_at FLOAT NOT NULL,
    started_at FLOAT,
    ended_at FLOAT,
    outcome TEXT,
    exit_code INTEGER,
    signal INTEGER,
    peak_memory BIGINT,
    cpu_time FLOAT,
    error TEXT,
    output TEXT,
    stderr_tail TEXT,
    PRIMARY KEY (task_id, number)
);

CREATE TABLE notices (
    workflow_id BIGINT NOT NULL,
    topic TEXT NOT NULL,
    count BIGINT NOT NULL,
    PRIMARY KEY (workflow_id, topic)
);

CREATE TABLE events (
    id BIGSERIAL NOT NULL,
    task_id BIGINT NOT NULL,
    at FLOAT NOT NULL,
    state TEXT NOT NULL,
    who TEXT NOT NULL,
    why TEXT NOT NULL,
    PRIMARY KEY (id)
);

CREATE INDEX ix_events_task_id ON events (task_id);

CREATE TABLE runs (
    id BIGSERIAL NOT NULL,
    workflow_id BIGINT NOT NULL,
    parsl_run_id TEXT NOT NULL,
    host TEXT NOT NULL,
    host_key TEXT NOT NULL,
    pid INTEGER NOT NULL,
    pid_started FLOAT NOT NULL,
    retry_policy TEXT NOT NULL,
    launch_order TEXT,
    block_rules TEXT,
    started_at FLOAT NOT NULL,
    lease_s FLOAT,
    lease_until FLOAT NOT NULL,
    ended_at FLOAT,
    PRIMARY KEY (id),
    FOREIGN KEY(workflow_id) REFERENCES workflows (id)
);

CREATE INDEX ix_runs_workflow_id ON runs (workflow_id);

CREATE TABLE tasks (
    id BIGSERIAL NOT NULL,
    workflow_id BIGINT NOT NULL,
    run_id BIGINT NOT NULL,
    key BYTEA NOT NULL,
    occurrence INTEGER NOT NULL,
    state TEXT NOT NULL,
    app TEXT NOT NULL,
    function BYTEA NOT NULL,
    priority INTEGER NOT NULL,
    nodes INTEGER NOT NULL,
    cores INTEGER,
    packing INTEGER,
    gpus INTEGER DEFAULT 0 NOT NULL,
    parallel BOOLEAN DEFAULT false NOT NULL,
    walltime_min FLOAT,
    spec TEXT,
    stdout TEXT,
    stderr TEXT,
    ready_at FLOAT,
    attempts INTEGER DEFAULT 0 NOT NULL,
    budget_from INTEGER DEFAULT 0 NOT NULL,
    block_id BIGINT,
    token BIGINT,
    cancel_requested BOOLEAN DEFAULT false NOT NULL,
    submitted_at FLOAT NOT NULL,
    finished_at FLOAT,
    finish BIGINT,
    PRIMARY KEY (id),
    UNIQUE (workflow_id, key, occurrence),
    FOREIGN KEY(workflow_id) REFERENCES workflows (id)
);

CREATE INDEX tasks_to_claim ON tasks (workflow_id, run_id, priority DESC, nodes DESC, id) WHERE state = 'ready';

CREATE INDEX tasks_by_finish ON tasks (workflow_id, finish) WHERE finish IS NOT NULL;

CREATE INDEX tasks_by_block ON tasks (block_id) WHERE block_id IS NOT NULL;

CREATE TABLE blocks (
    id BIGSERIAL NOT NULL,
    workflow_id BIGINT NOT NULL,
    run_id BIGINT NOT NULL,
    name TEXT NOT NULL,
    tag TEXT NOT NULL,
    scheduler TEXT,
    job_id TEXT,
    script TEXT,
    queue TEXT,
    requested_nodes INTEGER,
    walltime_min FLOAT,
    why TEXT,
    job_state TEXT,
    job_reason TEXT,
    end_wish TEXT,
    state TEXT NOT NULL,
    host TEXT,
    pid INTEGER,
    requested_at FLOAT NOT NULL,
    started_at FLOAT,
    lease_s FLOAT NOT NULL,
    lease_until FLOAT,
    ended_at FLOAT,
    reason TEXT,
    nodes INTEGER,
    cores_per_node INTEGER,
    gpus_per_node INTEGER,
    ends_at FLOAT,
    lost_nodes TEXT,
    directory TEXT,
    PRIMARY KEY (id),
    FOREIGN KEY(workflow_id) REFERENCES workflows (id),
    FOREIGN KEY(run_id) REFERENCES runs (id),
    UNIQUE (tag)
);

CREATE INDEX ix_blocks_workflow_id ON blocks (workflow_id);

CREATE INDEX blocks_by_lease ON blocks (lease_until) WHERE state = 'running';

INSERT INTO schema_version (version) VALUES (4);
