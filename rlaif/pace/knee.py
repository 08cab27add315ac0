class Knee:
    open = True
    due = False
    def __init__(self, ceiling): pass
    def learn(self, kind, level, latency): pass
    def look(self, now, limit, wanted): return None
    def disturbed(self): pass
