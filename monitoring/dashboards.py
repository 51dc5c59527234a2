"""The dashboards of streams, generators, viewers and ledger; those of the cache and its store are in ``memory``."""

from monitoring.memory import CACHE, STORE
from monitoring.panels import Dashboard, Panel, Query
from monitoring.queries import or_none, share
from monitoring.reading import EVER, HERE, QUANTILES, quantiles

CREATE = "POST /v1/sessions"
SESSIONS = HERE.total(HERE.now("sessions"))
MISSES = share(HERE.total(HERE.rate("deadline_misses")), HERE.total(HERE.rate("chunks")))

STREAMS = Dashboard(
    "streams",
    "Longtake: streams",
    (
        Panel(
            "Sessions by state",
            "Running ones take a place in a generator; paused ones are put away and come back bit-equal.",
            "short",
            (Query(HERE.total(HERE.now("sessions"), "state"), "{{state}}"),),
            stacked=True,
        ),
        Panel(
            "Starting and stalled",
            "Starting: nothing was published yet. Stalled: a viewer has run dry and waits for a chunk.",
            "short",
            (
                Query(HERE.total(HERE.now("starting")), "starting"),
                Query(HERE.total(HERE.now("stalled")), "stalled"),
                Query(HERE.total(HERE.now("unpublished")), "stepped, not published"),
            ),
        ),
        Panel(
            "Time to first frame",
            "From the session's creation to its first chunk, as its generator sees it, over ten minutes.",
            "s",
            tuple(Query(HERE.quantile_over(q, "first_chunk_seconds", EVER), f"p{100 * q:g}") for q in QUANTILES),
        ),
        Panel(
            "Deadline misses",
            "Of all chunks published, those that came after a viewer had run dry.",
            "percentunit",
            (Query(MISSES, "late"),),
        ),
        Panel(
            "Chunks published",
            "By all generators.",
            "ops",
            (Query(HERE.total(HERE.rate("chunks")), "chunks per second"),),
        ),
        Panel(
            "Media published",
            "Seconds of media per second: how many streams' worth of real time is made.",
            "short",
            (Query(HERE.total(HERE.rate("media_seconds")), "seconds per second"),),
        ),
        Panel(
            "Sessions asked for",
            "By answer: 201 begun, 429 every place is taken.",
            "ops",
            (Query(HERE.total(HERE.rate("requests", call=CREATE), "outcome"), "{{outcome}}"),),
        ),
        Panel(
            "Takeovers in ten minutes",
            "Sessions that another generator went on with: moved, drained, or after a loss.",
            "short",
            (Query(or_none(HERE.total(HERE.grown("takeovers", EVER)), SESSIONS), "taken over"),),
        ),
        Panel(
            "Calls",
            "Of all gateways, by answer.",
            "ops",
            (Query(HERE.total(HERE.rate("requests"), "outcome"), "{{outcome}}"),),
        ),
    ),
)

MEDIA, STEPS = HERE.rate("media_seconds"), HERE.rate("step_seconds")
GENERATOR = Dashboard(
    "generator",
    "Longtake: generators",
    (
        *(
            Panel(f"Chunk latency: {phase}", says, "s", quantiles("chunk_seconds", phase=phase))
            for phase, says in {
                "total": "From the beginning of its step to its publication.",
                "compute": "The model, for the whole batch.",
                "encode": "Decoding to frames and samples, and media encoding, while the next step runs.",
                "ledger": "Until the ledger service has booked it, while it is encoded.",
            }.items()
        ),
        Panel(
            "Batch size",
            "Sessions in a step.",
            "short",
            (
                Query(f"{HERE.total(HERE.rate('chunks'))} / {HERE.total(HERE.observed('batch_sessions'))}", "mean"),
                *(Query(f"ceil({HERE.quantile(q, 'batch_sessions')})", f"p{100 * q:g}") for q in QUANTILES[1:]),
            ),
        ),
        Panel(
            "Real-time factor",
            "Seconds of media per second that the model computes, by generator: so many streams it could play.",
            "short",
            (Query(f"{HERE.total(MEDIA, 'replica')} / {HERE.total(STEPS, 'replica')}", "{{replica}}"),),
        ),
        Panel(
            "Time the model computes",
            "By generator. At 100 % it has no slack, and viewers run dry.",
            "percentunit",
            (Query(HERE.total(STEPS, "replica"), "{{replica}}"),),
        ),
        Panel(
            "GPU memory",
            "Of torch's allocator, of all who use the GPU, and what it has.",
            "bytes",
            (Query(HERE.total(HERE.now("gpu_bytes"), "what", "replica"), "{{what}} {{replica}}"),),
            needs="a GPU",
        ),
        Panel(
            "Memory pool",
            "Held by chunks of the cache, and what the pool has.",
            "bytes",
            (Query(HERE.total(HERE.now("pool_bytes"), "what"), "{{what}}"),),
        ),
    ),
)

LEDGER = Dashboard(
    "ledger",
    "Longtake: ledger",
    (
        Panel(
            "Commit latency at the shard",
            "Of a call that books the chunks of a step, the journal's append included.",
            "s",
            quantiles("commit_seconds"),
        ),
        Panel(
            "Commit latency at the generator",
            "The same, with the way there and back, and what was tried again.",
            "s",
            quantiles("chunk_seconds", phase="ledger"),
        ),
        Panel(
            "Commits by verdict",
            "Booked; behind or differs: the books were stated anew; fenced: another generator has the session.",
            "ops",
            (Query(HERE.total(HERE.rate("ledger_entries"), "verdict"), "{{verdict}}"),),
        ),
        Panel(
            "Journal lag",
            "Sessions whose books are to be written to the journal, by shard.",
            "short",
            (Query(HERE.total(HERE.now("journal_unwritten"), "shard"), "shard {{shard}}"),),
        ),
        Panel(
            "Journal down",
            "1 while a shard cannot write; streams stand still then.",
            "short",
            (Query(f"max by (shard) ({HERE.now('journal_down')})", "shard {{shard}}"),),
        ),
        Panel(
            "Journal size",
            "Live: what a replay needs. Held: with what is yet to be cleared.",
            "bytes",
            (Query(HERE.total(HERE.now("journal_bytes"), "what", "shard"), "{{what}}, shard {{shard}}"),),
        ),
        Panel(
            "Journal troubles in ten minutes",
            "Failed writes, damaged lines, sessions whose books could not be taken up.",
            "short",
            (Query(HERE.total(HERE.grown("journal_troubles", EVER), "what"), "{{what}}"),),
        ),
        Panel(
            "Undurable commits",
            "Of all commits, those that were booked before the restore store had what must survive.",
            "percentunit",
            (Query(share(HERE.total(HERE.rate("undurable")), HERE.total(HERE.rate("ledger_entries"))), "undurable"),),
        ),
    ),
)

VIEWERS = Dashboard(
    "viewers",
    "Longtake: viewers",
    (
        Panel(
            "Viewers",
            "Of all sessions, as generators know them.",
            "short",
            (Query(HERE.total(HERE.now("viewers")), "viewers"),),
        ),
        Panel(
            "Open sockets",
            "By gateway.",
            "short",
            (Query(HERE.total(HERE.now("sockets"), "replica"), "{{replica}}"),),
            stacked=True,
        ),
        Panel(
            "Viewers that stalled, in ten minutes",
            "They acknowledged nothing for too long, and were dropped, or their session was paused.",
            "short",
            (
                Query(
                    or_none(HERE.total(HERE.grown("viewer_stalls", EVER)), HERE.total(HERE.now("viewers"))),
                    "stalled",
                ),
            ),
        ),
        Panel("Chunks too late", "See Deadline misses of the streams.", "percentunit", (Query(MISSES, "late"),)),
        Panel(
            "Waiting for a chunk",
            "Sessions that a viewer has run dry of.",
            "short",
            (Query(HERE.total(HERE.now("stalled")), "sessions"),),
        ),
        Panel(
            "Viewers per running session",
            "Media are encoded once, however many watch.",
            "short",
            (
                Query(
                    f"{HERE.total(HERE.now('viewers'))} / {HERE.total(HERE.now('sessions', state='running'))}",
                    "viewers",
                ),
            ),
        ),
    ),
)

ALL = (STREAMS, GENERATOR, CACHE, STORE, LEDGER, VIEWERS)
