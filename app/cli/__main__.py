"""``python -m app.cli``: how ``tollgate up`` starts its children."""

from app.cli import main

main()
