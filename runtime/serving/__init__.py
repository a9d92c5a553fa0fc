"""`edge-gemma serve`: one model behind an HTTP interface that OpenAI's clients know.

`app.py` puts it together. A request passes `guard.py`, `limits.py` and `journal.py`, is read by
`chat_request.py` or `audio_api.py`, waits in `runtime/scheduler.py` and is answered by `chat_api.py` or
`audio_api.py`; what is wrong with it becomes an answer in `problems.py`. Needs the extra [server].
"""
